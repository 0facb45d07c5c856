//! Sizes, times and formats, as people write them.

use std::time::Duration;

use crate::inference::Format;

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        unit => return Err(format!("{unit:?} is not a unit of memory; use K, M, G or T, like 2G")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size; write it like 2G or 500M"))?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is out of range"))
}

/// As [`parse_size`], or none.
pub(crate) fn parse_size_or_0(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is not a time; write it like 10s or 500ms"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        unit => return Err(format!("{unit:?} is not a unit of time; use ms, s or m")),
    };
    if (0.01..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("{text:?} is out of range: between 10ms and 60m"))
    }
}

/// The longest file of a JSON schema.
const SCHEMA_MAX: u64 = 1 << 20;

/// What an answer has to be: `json`, or the file of a JSON schema.
pub(crate) fn parse_format(text: &str) -> Result<Format, String> {
    if text == "json" {
        return Ok(Format::Json);
    }
    let meta = std::fs::metadata(text).map_err(|e| format!("neither 'json' nor a file that can be read: {e}"))?;
    if meta.len() > SCHEMA_MAX {
        return Err("a schema's file has 1 MiB at most".into());
    }
    let schema = std::fs::read_to_string(text).map_err(|e| e.to_string())?;
    match serde_json::from_str(&schema) {
        Ok(schema @ (serde_json::Value::Object(_) | serde_json::Value::Bool(_))) => Ok(Format::Schema(schema)),
        Ok(_) => Err("a JSON schema is an object".into()),
        Err(error) => Err(format!("the file is not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("500MiB"), Ok(500 << 20));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("2X").is_err() && parse_size("G").is_err() && parse_size("99999999T").is_err());
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("20ms"), Ok(Duration::from_millis(20)));
        assert!(parse_duration("1h").is_err() && parse_duration("0").is_err() && parse_duration("NaN").is_err());
    }

    #[test]
    fn a_format_is_json_or_the_file_of_a_schema() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = dir.path().join("schema.json");
            std::fs::write(&path, text).unwrap();
            parse_format(path.to_str().unwrap())
        };
        assert_eq!(parse_format("json"), Ok(Format::Json));
        assert_eq!(file("{\"type\":\"integer\"}"), Ok(Format::Schema(serde_json::json!({ "type": "integer" }))));
        assert!(file("[]").is_err() && file("{").is_err() && parse_format("no such file").is_err());
    }
}
