//! What may come next on a line, from the tree of commands.

use std::sync::{Arc, Mutex, PoisonError};

use clap::{Arg, Command};
use reedline::{Completer, CompletionResult, Span, Suggestion};

/// Completes commands, flags, their values, and ids of peers.
pub(super) struct Completions {
    tree: Command,
    /// Those that the daemon knows.
    peers: Arc<Mutex<Vec<String>>>,
}

impl Completions {
    pub(super) fn new(peers: Arc<Mutex<Vec<String>>>) -> Self {
        Self { tree: crate::cli::reference::tree(), peers }
    }
}

impl Completer for Completions {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let before = line.get(..pos).unwrap_or(line);
        let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let words: Vec<&str> = before[..start].split_whitespace().collect();
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let suggestion = |(value, description): (String, Option<String>)| Suggestion {
            value,
            description,
            span: Span::new(start, pos.max(start)),
            append_whitespace: true,
            ..Suggestion::default()
        };
        let fitting = candidates(&self.tree, &peers, &words, &before[start..]).into_iter().map(suggestion);
        CompletionResult::fresh(fitting.collect::<Vec<_>>())
    }
}

/// What may stand after `words` and begins with `begun`, with a word on what it is.
fn candidates(tree: &Command, peers: &[String], words: &[&str], begun: &str) -> Vec<(String, Option<String>)> {
    let mut command = tree;
    let mut positional = 0;
    let mut expects = None;
    for word in words {
        if expects.take().is_some() {
            continue;
        }
        if let Some(name) = word.strip_prefix("--") {
            expects = flag(command, name).filter(|arg| !word.contains('=') && takes_value(arg));
        } else if let Some(below) = command.find_subcommand(word) {
            (command, positional) = (below, 0);
        } else if !word.starts_with('-') {
            positional += 1;
        }
    }
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    match expects {
        Some(arg) => values(arg, peers, &mut found),
        None if begun.starts_with('-') => {
            let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
            found.extend(shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), about(arg)))));
        }
        None => {
            let below = command.get_subcommands().filter(|below| !below.is_hide_set());
            let named = |below: &Command| (below.get_name().to_owned(), below.get_about().map(ToString::to_string));
            found.extend(below.map(named));
            if std::ptr::eq(command, tree) {
                found.extend(["known", "quit"].map(|word| (word.to_owned(), None)));
            }
            if let Some(arg) = command.get_positionals().nth(positional) {
                values(arg, peers, &mut found);
            }
        }
    }
    found.retain(|(value, _)| value.starts_with(begun));
    found
}

fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name))
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

fn about(arg: &Arg) -> Option<String> {
    arg.get_help().map(ToString::to_string)
}

/// Values of an argument: those there are, or peers where one is meant.
fn values(arg: &Arg, peers: &[String], found: &mut Vec<(String, Option<String>)>) {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        found.extend(possible.iter().map(|value| (value.get_name().to_owned(), None)));
        return;
    }
    let names = arg.get_value_names().unwrap_or_default();
    if names.iter().any(|name| name.split('|').any(|name| name == "PEER")) {
        found.extend(peers.iter().map(|peer| (peer.clone(), None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_next_is_in_the_tree() {
        let tree = crate::cli::reference::tree();
        let peers = ["12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS".to_owned()];
        let next = |words: &[&str], begun: &str| {
            let all = candidates(&tree, &peers, words, begun);
            all.into_iter().map(|(value, _)| value).collect::<Vec<_>>()
        };
        assert!(next(&[], "pe").contains(&"peers".to_owned()));
        assert_eq!(next(&[], "kno"), ["known"]);
        assert_eq!(next(&["peers"], "inf"), ["info"]);
        assert_eq!(next(&["peers", "info"], "12D3"), peers);
        assert_eq!(next(&["ping"], "12D3"), peers);
        assert_eq!(next(&["ledger", "list", "--peer"], ""), peers);
        assert_eq!(next(&["peers", "list", "--sort"], "b"), ["bytes"]);
        assert!(next(&["peers", "list"], "--re").contains(&"--relayed".to_owned()));
        assert!(next(&["peers", "list"], "--da").contains(&"--data-dir".to_owned()));
        assert!(next(&["infer"], "12D3").is_empty());
    }
}
