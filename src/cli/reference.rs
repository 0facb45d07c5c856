//! What is generated from the tree of commands: completions, pages of the manual, and docs/cli.md.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use clap::{Arg, Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use quelea_wire::ErrorCode;

use super::{
    args::{Cli, CompletionsArgs, Global, ManArgs},
    exit::CliError,
    output::{data, data_bytes, note},
};

/// The whole tree, with the flags of every command in place.
pub(super) fn tree() -> Command {
    let mut tree = Cli::command();
    tree.build();
    tree
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quelea", &mut script);
    data_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(_: &Global, args: &ManArgs) -> Result<ExitCode, CliError> {
    match &args.dir {
        _ if args.markdown => data(&markdown())?,
        None => data_bytes(&page(&tree())?)?,
        Some(dir) => {
            let failed = |e: std::io::Error| {
                CliError::new(ErrorCode::StorageFailed, format!("cannot write to {}: {e}", dir.display()))
            };
            std::fs::create_dir_all(dir).map_err(failed)?;
            let written = pages(&tree(), dir, &failed)?;
            note(&format!("{written} pages in {}", dir.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &Command, dir: &Path, failed: &dyn Fn(std::io::Error) -> CliError) -> Result<usize, CliError> {
    let mut written = 1;
    std::fs::write(dir.join(format!("{}.1", dashed(command))), page(command)?).map_err(failed)?;
    for below in shown(command) {
        written += pages(below, dir, failed)?;
    }
    Ok(written)
}

/// `quelea peers list`, as one word.
fn dashed(command: &Command) -> String {
    full_name(command).replace(' ', "-")
}

fn full_name(command: &Command) -> &str {
    command.get_bin_name().unwrap_or_else(|| command.get_name())
}

/// The commands below, without clap's own `help`.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set())
}

/// A page of the manual. Examples keep their lines, which clap_mangen would fill.
fn page(command: &Command) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let write = |bytes: &mut Vec<u8>| -> std::io::Result<()> {
        let man = Man::new(command.clone().name(dashed(command)).disable_help_subcommand(true))
            .manual("Quelea")
            .source(concat!("quelea ", env!("CARGO_PKG_VERSION")));
        man.render_title(bytes)?;
        man.render_name_section(bytes)?;
        man.render_synopsis_section(bytes)?;
        man.render_description_section(bytes)?;
        man.render_options_section(bytes)?;
        if shown(command).next().is_some() {
            man.render_subcommands_section(bytes)?;
        }
        for (title, lines) in sections(command) {
            let mut roff = Roff::new();
            roff.control("SH", [title.to_uppercase().as_str()]);
            roff.control("nf", []);
            for line in lines {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
            roff.to_writer(bytes)?;
        }
        Ok(())
    };
    write(&mut bytes).map_err(|e| CliError::new(ErrorCode::Internal, e.to_string()))?;
    Ok(bytes)
}

/// What stands under a command's help, by its headings: examples, and exit codes.
fn sections(command: &Command) -> Vec<(String, Vec<String>)> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match (line.split_once(':'), sections.last_mut()) {
            (Some((title, rest)), _) if !line.starts_with(' ') => {
                let rest = Some(rest.trim().to_owned()).filter(|rest| !rest.is_empty());
                sections.push((title.to_owned(), rest.into_iter().collect()));
            }
            (_, Some((_, lines))) => lines.push(line.strip_prefix("  ").unwrap_or(line).to_owned()),
            (_, None) => sections.push(("Notes".into(), vec![line.to_owned()])),
        }
    }
    sections
}

/// The page docs/cli.md.
pub(super) fn markdown() -> String {
    let tree = tree();
    let mut page = String::from(
        "# The command line\n\nMade from the program itself: `quelea man --markdown > docs/cli.md`. A test fails when this page and the \
         program differ.\n\n`quelea COMMAND --help` shows the same on a terminal, `quelea man DIR` writes pages of the manual.\n\n",
    );
    for (title, lines) in sections(&tree) {
        let _ = writeln!(page, "**{title}**\n");
        if title == "Examples" {
            let _ = writeln!(page, "```sh\n{}\n```\n", lines.join("\n"));
        } else {
            let items = lines.iter().flat_map(|line| line.split(" · "));
            for item in items {
                let _ = writeln!(page, "- {item}");
            }
            page.push('\n');
        }
    }
    let _ = writeln!(page, "## Options of every command\n");
    options(&mut page, tree.get_arguments().filter(|arg| arg.is_global_set()));
    describe_below(&mut page, &tree, 2);
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn describe_below(page: &mut String, command: &Command, level: usize) {
    for below in shown(command) {
        let _ = writeln!(page, "{} {}\n", "#".repeat(level.min(4)), full_name(below));
        if let Some(about) = below.get_about() {
            let _ = writeln!(page, "{about}.\n");
        }
        let usage = below.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim();
        let _ = writeln!(page, "```\n{usage}\n```\n");
        options(page, below.get_arguments().filter(|arg| !arg.is_global_set()));
        for (title, lines) in sections(below) {
            let _ = writeln!(page, "{title}:\n\n```sh\n{}\n```\n", lines.join("\n"));
        }
        describe_below(page, below, level + 1);
    }
}

/// A table of arguments and flags.
fn options<'a>(page: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let mut rows = String::new();
    for arg in arguments.filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")) {
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let mut about = vec![help.split_whitespace().collect::<Vec<_>>().join(" ")];
        let values: Vec<String> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
        let takes_value = arg.get_action().takes_values();
        if takes_value && !values.is_empty() && !matches!(arg.get_id().as_str(), "shell") {
            about.push(format!("one of {}", values.join(", ")));
        }
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() && defaults != ["``"] {
            about.push(format!("default {}", defaults.join(", ")));
        }
        if let Some(variable) = arg.get_env().filter(|_| !arg.is_hide_env_set()) {
            about.push(format!("environment `{}`", variable.to_string_lossy()));
        }
        let _ = writeln!(rows, "| {} | {} |", spelled(arg).replace('|', "\\|"), about.join("; ").replace('|', "\\|"));
    }
    if !rows.is_empty() {
        let _ = writeln!(page, "| argument | what |\n|---|---|\n{rows}");
    }
}

/// `--port`, `-p` `PORT`.
fn spelled(arg: &Arg) -> String {
    let mut names: Vec<String> = arg.get_long().iter().map(|long| format!("`--{long}`")).collect();
    names.extend(arg.get_visible_aliases().unwrap_or_default().iter().map(|long| format!("`--{long}`")));
    names.extend(arg.get_short().map(|short| format!("`-{short}`")));
    let value = arg.get_value_names().unwrap_or_default().join(" ");
    let takes = arg.get_action().takes_values();
    match (names.is_empty(), takes && !value.is_empty()) {
        (true, _) => format!("`{value}`"),
        (false, true) => format!("{} `{value}`", names.join(", ")),
        (false, false) => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &Command, see: &mut dyn FnMut(&Command)) {
        see(command);
        shown(command).for_each(|below| each(below, see));
    }

    #[test]
    fn the_reference_is_what_the_program_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let made = markdown();
        if let Some((line, (old, new))) =
            committed.lines().chain(std::iter::repeat("")).zip(made.lines()).enumerate().find(|(_, (a, b))| a != b)
        {
            panic!(
                "docs/cli.md differs from the program in line {}:\n  page:    {old}\n  program: {new}\n\
                 make it again with: cargo run -- man --markdown > docs/cli.md",
                line + 1
            );
        }
        assert_eq!(committed, made, "make docs/cli.md again with: cargo run -- man --markdown > docs/cli.md");
    }

    #[test]
    fn every_command_shows_how_it_is_used() {
        let mut without = Vec::new();
        each(&tree(), &mut |command| {
            let sections = sections(command);
            let examples = sections.iter().find(|(title, _)| title == "Examples").map(|(_, lines)| lines.as_slice());
            let shown = examples.unwrap_or_default().iter().filter(|line| line.contains("quelea")).count();
            // A group of commands has those of its commands.
            let group = command.has_subcommands();
            if shown < 2 && !(group && examples.is_none()) {
                without.push(format!("{}: {shown}", full_name(command)));
            }
            assert!(command.get_about().is_some(), "{} does not say what it does", full_name(command));
        });
        assert!(without.is_empty(), "these need two examples at least in their after_help: {without:?}");
    }

    #[test]
    fn every_flag_says_what_it_does() {
        each(&tree(), &mut |command| {
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{}: {} has no help", full_name(command), arg.get_id());
            }
        });
    }

    #[test]
    fn pages_of_the_manual_have_their_examples_and_exit_codes() {
        let page = |command: &Command| String::from_utf8(super::page(command).unwrap()).unwrap();
        let tree = tree();
        let root = page(&tree);
        assert!(root.contains(".SH \"EXIT CODES\"") && root.contains("130 interrupted"), "{root}");
        let infer = page(tree.find_subcommand("infer").unwrap());
        assert!(infer.contains(".TH quelea-infer 1") && infer.contains("quelea infer \\-\\-resume last"), "{infer}");
    }
}
