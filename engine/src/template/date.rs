//! The date as templates ask for it: Python's `strftime`, in UTC and the C locale.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use minijinja::{Error, ErrorKind};

fn unknown(directive: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("strftime: unknown directive %{directive}"))
}

/// The present time.
pub(super) fn now() -> u64 {
    // A clock before 1970 is wrong, and any answer is.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Python's `strftime` in the C locale, for the directives that dates and times are made of.
pub(super) fn strftime(pattern: &str, unix_seconds: u64) -> Result<String, Error> {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let (year, month, day, day_of_year) = civil(days);
    // 1 January 1970 was a Thursday.
    let sunday = (days + 4) % 7;
    let weekday = DAYS[sunday as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => write!(out, "{year}")?,
            Some('y') => write!(out, "{:02}", year % 100)?,
            Some('m') => write!(out, "{month:02}")?,
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('d') => write!(out, "{day:02}")?,
            Some('e') => write!(out, "{day:2}")?,
            Some('j') => write!(out, "{day_of_year:03}")?,
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => write!(out, "{hour:02}")?,
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1)?,
            Some('M') => write!(out, "{minute:02}")?,
            Some('S') => write!(out, "{second:02}")?,
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('C') => write!(out, "{:02}", year / 100)?,
            Some('D' | 'x') => write!(out, "{month:02}/{day:02}/{:02}", year % 100)?,
            Some('R') => write!(out, "{hour:02}:{minute:02}")?,
            Some('X') => write!(out, "{hour:02}:{minute:02}:{second:02}")?,
            Some('c') => out.push_str(&strftime("%a %b %e %X %Y", unix_seconds)?),
            Some('s') => write!(out, "{unix_seconds}")?,
            Some('f') => out.push_str("000000"),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('w') => write!(out, "{sunday}")?,
            Some('u') => write!(out, "{}", (sunday + 6) % 7 + 1)?,
            Some('U') => write!(out, "{:02}", (day_of_year + 6 - sunday) / 7)?,
            Some('W') => write!(out, "{:02}", (day_of_year + 6 - (sunday + 6) % 7) / 7)?,
            Some('V') => write!(out, "{:02}", iso_week(year, day_of_year, sunday).1)?,
            Some('G') => write!(out, "{}", iso_week(year, day_of_year, sunday).0)?,
            Some('g') => write!(out, "{:02}", iso_week(year, day_of_year, sunday).0 % 100)?,
            Some('F') => write!(out, "{year}-{month:02}-{day:02}")?,
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}")?,
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('-') => match chars.next() {
                Some('d') => write!(out, "{day}")?,
                Some('m') => write!(out, "{month}")?,
                Some('H') => write!(out, "{hour}")?,
                other => return Err(unknown(format!("-{}", other.unwrap_or(' ')))),
            },
            Some('%') => out.push('%'),
            other => return Err(unknown(other.unwrap_or(' '))),
        }
    }
    Ok(out)
}

/// Year, month (1–12), day (1–31) and day of the year (1–366) of a day counted from 1970.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    // The calendar repeats every 400 years of 146,097 days, so the loop below runs 400 times at most.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = rest + 1;
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1, day_of_year)
}

/// The year and number of the week that the day lies in, weeks beginning on Mondays and belonging to the year of their
/// Thursday. `sunday`: days since Sunday.
fn iso_week(year: u64, day_of_year: u64, sunday: u64) -> (u64, u64) {
    let last = |year: u64| (year + year / 4 - year / 100 + year / 400) % 7;
    let weeks = |year: u64| if last(year) == 4 || last(year - 1) == 3 { 53 } else { 52 };
    match (day_of_year + 9 - (sunday + 6) % 7) / 7 {
        0 => (year - 1, weeks(year - 1)),
        week if week > weeks(year) => (year + 1, 1),
        week => (year, week),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from Python's `datetime.strftime`.
    #[test]
    fn dates_are_pythons() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %I %p %e %%";
        assert_eq!(strftime(all, 0).unwrap(), "1970-01-01 00:00:00 Thursday Thu January Jan 001 70 12 AM  1 %");
        let leap = "2024-02-29 23:59:59 Thursday Thu February Feb 060 24 11 PM 29 %";
        assert_eq!(strftime(all, 1_709_251_199).unwrap(), leap);
        assert_eq!(strftime("%d %b %Y", 4_102_444_799).unwrap(), "31 Dec 2099");
        let weeks = "%U|%W|%V|%G|%u|%w|%D|%R|%C|%g|%c";
        assert_eq!(
            strftime(weeks, 1_767_323_045).unwrap(),
            "00|00|01|2026|5|5|01/02/26|03:04|20|26|Fri Jan  2 03:04:05 2026"
        );
        assert_eq!(strftime("%G-%V %U %W", 1_609_459_200).unwrap(), "2020-53 00 00");
        assert_eq!(strftime("%G-%V %U %W", 1_735_603_200).unwrap(), "2025-01 52 53");
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("50%", 0).is_err());
    }
}
