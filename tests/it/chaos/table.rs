//! What came of it, for people.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use super::schedule::{Fault, PHASES, Phase, STAGES};

/// A worker was lost.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    pub worker: usize,
    pub at: usize,
    pub phase: Phase,
    pub fault: Fault,
    pub when: Instant,
}

impl Loss {
    /// Whether it was stopped: no connection broke.
    pub fn is_silent(&self) -> bool {
        matches!(self.fault, Fault::Stop { .. })
    }
}

/// For how long no token came when something was lost, and how much of that the successor computed what was lost.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub silent: bool,
    pub whole: Duration,
    pub beyond: Duration,
}

/// All that has happened.
#[derive(Debug, Default)]
pub struct Table {
    pub losses: BTreeMap<(Phase, usize), usize>,
    pub stopped: usize,
    pub slowed: usize,
    pub answers: usize,
    pub recoveries: usize,
    pub gaps: Vec<Gap>,
}

impl Table {
    pub fn count(&mut self, losses: &[Loss]) {
        for loss in losses {
            *self.losses.entry((loss.phase, loss.at)).or_default() += 1;
            self.stopped += usize::from(loss.is_silent());
        }
    }

    /// Workers that were lost.
    pub fn lost(&self) -> usize {
        self.losses.values().sum()
    }

    /// The least of all stages and phases.
    pub fn least(&self) -> usize {
        let cells = PHASES.into_iter().flat_map(|phase| (0..STAGES).map(move |at| (phase, at)));
        cells.map(|cell| self.losses.get(&cell).copied().unwrap_or(0)).min().unwrap_or(0)
    }
}

/// The middle and the 99th of a hundred, in milliseconds.
fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let Some(last) = times.len().checked_sub(1) else { return format!("{:>15}", "none") };
    let at = |part: usize| times[(last * part).div_ceil(100)].as_millis();
    format!("{:>6} {:>8}", at(50), at(99))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12}{:>8}{:>8}{:>8}", "lost in", "first", "middle", "last")?;
        for phase in PHASES {
            write!(f, "{:<12}", format!("{phase:?}").to_lowercase())?;
            for at in 0..STAGES {
                write!(f, "{:>8}", self.losses.get(&(phase, at)).copied().unwrap_or(0))?;
            }
            writeln!(f)?;
        }
        let (lost, stopped) = (self.lost(), self.stopped);
        writeln!(f, "{lost} lost, {stopped} of them stopped and not killed; {} slowed", self.slowed)?;
        writeln!(f, "{} answers, {} recoveries", self.answers, self.recoveries)?;
        writeln!(f, "{:<34}{:>6} {:>8}", "milliseconds without a token", "half", "99 %")?;
        for (silent, name) in [(false, "killed"), (true, "stopped")] {
            let of = || self.gaps.iter().filter(move |gap| gap.silent == silent);
            writeln!(f, "{:<34}{}", format!("{name}, {} times", of().count()), spread(of().map(|gap| gap.whole)))?;
            writeln!(f, "{:<34}{}", "  beyond computing again", spread(of().map(|gap| gap.beyond)))?;
        }
        Ok(())
    }
}
