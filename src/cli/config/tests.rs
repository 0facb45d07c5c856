use clap::ValueEnum as _;

use super::{
    file::{Entry, entries},
    layers::{check, key, keys, name_of},
    profile,
};
use crate::cli::args::ProfileArg;

#[test]
fn a_file_is_read_as_flags_are() {
    let text = "# a remark\nport = 9000\nmdns = true\nbootstrap = [\n  \"a\",\n  \"b\",\n]\nmemory = \"2G\"\nlisten = \"one\"\n";
    let read = entries("config.toml", text, &keys()).unwrap();
    let entry = |key: &str, line, values: &[&str]| Entry {
        key: key.into(),
        line,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    let expected = [
        entry("port", 2, &["9000"]),
        entry("mdns", 3, &["true"]),
        entry("bootstrap", 4, &["a", "b"]),
        entry("memory", 8, &["2G"]),
        entry("listen", 9, &["one"]),
    ];
    assert_eq!(read, expected);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_was_meant() {
    for (text, message, hint) in [
        ("\nprot = 1\n", "config.toml:2: there is no setting \"prot\"", "did you mean \"port\"?"),
        ("boostrap = []", "config.toml:1: there is no setting \"boostrap\"", "did you mean \"bootstrap\"?"),
        ("[qqqq]\nx = 1", "config.toml:1: there is no setting \"qqqq\"", "'quelea config show' has all of them"),
        ("mdns = 1", "config.toml:1: mdns: it is true or false", ""),
        ("port = [1, 2]", "config.toml:1: port: it has one value, not several", ""),
        ("[port]\nx = 1", "config.toml:1: port: it has no sections", ""),
    ] {
        let error = entries("config.toml", text, &keys()).unwrap_err();
        assert_eq!((error.message.as_str(), error.hint.as_deref().unwrap_or_default()), (message, hint));
    }
    let error = entries("config.toml", "port = 1\nport = ", &keys()).unwrap_err();
    assert!(error.message.starts_with("config.toml:2: "), "{}", error.message);
    // Commands and what is asked of one start only are no settings.
    for none in ["help", "dry-run", "json", "data-dir"] {
        assert!(entries("config.toml", &format!("{none} = true"), &keys()).is_err(), "{none}");
    }
}

#[test]
fn values_are_checked_by_the_flags_own_parsers() {
    let wrong = |name: &str, value: &str| check(&key(name).unwrap(), &[value.to_owned()]).err();
    assert_eq!(wrong("port", "8468"), None);
    assert_eq!(wrong("layers", "0..8"), None, "what it needs beside it is another matter");
    assert!(wrong("port", "70000").is_some_and(|what| what.contains("--port")));
    assert!(wrong("memory", "2X").is_some() && wrong("mdns", "yes").is_some() && wrong("profile", "home").is_some());
}

#[test]
fn profiles_set_what_there_is() {
    for profile in ProfileArg::value_variants() {
        assert_eq!(profile.to_possible_value().unwrap().get_name(), name_of(*profile));
        for (name, value) in profile::settings(*profile) {
            check(&key(name).unwrap(), &[(*value).to_owned()]).unwrap();
        }
    }
}
