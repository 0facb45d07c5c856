//! When debts are due.

use std::time::Duration;

use clap::Args;
use quelea_ledger::overdue::LONGEST_FOR_WORK_DAYS;

use super::peers::parse_long;
use crate::ledger::DebtTerms;

const DAY: u64 = 24 * 3600;

/// When this node pays, and how long it waits for others.
#[derive(Debug, Args)]
pub(crate) struct DebtArgs {
    /// After how long what this node promises for work is due, in whole days, rounded up; 90d at most
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_term)]
    pub(crate) debt_term: Duration,
    /// How long a peer that was asked for what is due may take, like 12h, before it is in default and gets no credit
    #[arg(long, value_name = "TIME", default_value = "72h", value_parser = parse_long)]
    pub(crate) debt_grace: Duration,
}

impl DebtArgs {
    pub(crate) fn terms(&self) -> DebtTerms {
        let days = self.debt_term.as_secs().div_ceil(DAY);
        DebtTerms { days: u16::try_from(days).unwrap_or(LONGEST_FOR_WORK_DAYS), grace: self.debt_grace }
    }
}

fn parse_term(text: &str) -> Result<Duration, String> {
    let term = parse_long(text)?;
    let longest = LONGEST_FOR_WORK_DAYS;
    let fits = term.as_secs() <= u64::from(longest) * DAY;
    if fits { Ok(term) } else { Err(format!("{text:?} is out of range: 1s to {longest}d")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_whole_days() {
        for (term, days) in [("1s", 1), ("24h", 1), ("25h", 2), ("90d", 90)] {
            let args = DebtArgs { debt_term: parse_term(term).unwrap(), debt_grace: Duration::from_secs(1) };
            assert_eq!(args.terms().days, days, "{term}");
        }
        assert!(parse_term("91d").is_err() && parse_term("0s").is_err());
    }
}
