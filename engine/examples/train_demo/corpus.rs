//! The text in `engine/demo`: what is asked, in which forms, and what is answered.
//!
//! Plain files of `[section]`s. `topics.txt`: a section per answer, with `answer: …`, names of the thing
//! (`one: a relay | …` for singular, `many: relays | …` for plural) and questions, one a line. `forms.txt`: the
//! question forms that names are put into, openers and closers, words that may be swapped or dropped.
//! `off_topic.txt`: questions that are to be declined, templates for more, and the lists that fill them.
//! `broad.txt`: more of these, for the second stage of training.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Res;

/// The id of the answer to everything the model does not know.
pub const OFF_TOPIC: &str = "off_topic";

/// Lines by section, in the order of the file within each.
pub type Sections = BTreeMap<String, Vec<String>>;

/// One thing the model knows.
pub struct Topic {
    /// The section's name.
    pub id: String,
    /// The only right answer.
    pub answer: String,
    /// Names in the singular, with their article.
    pub one: Vec<String>,
    /// Names in the plural.
    pub many: Vec<String>,
    /// Whole questions.
    pub asks: Vec<String>,
}

/// All of the text that the model is trained on.
pub struct Corpus {
    /// What can be answered.
    pub topics: Vec<Topic>,
    /// Question forms and what dresses them.
    pub forms: Sections,
    /// What is to be declined.
    pub off_topic: Sections,
    /// How it is declined.
    pub refusal: String,
}

/// One line of an evaluation set.
pub struct Asked {
    /// The question, as typed.
    pub question: String,
    /// A topic's id, or [`OFF_TOPIC`].
    pub answer_id: String,
}

/// Where the text lives, unless `--demo` says otherwise.
pub fn default_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn sections(path: &Path) -> Res<Vec<(String, Vec<String>)>> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(name) => all.push((name.to_owned(), Vec::new())),
            None => match all.last_mut() {
                Some((_, lines)) => lines.push(line.to_owned()),
                None => return Err(format!("{}: text before the first [section]: {line}", path.display()).into()),
            },
        }
    }
    Ok(all)
}

fn topic(id: String, lines: Vec<String>) -> Res<Topic> {
    let mut topic = Topic { id, answer: String::new(), one: Vec::new(), many: Vec::new(), asks: Vec::new() };
    let names = |list: &str| list.split('|').map(|name| name.trim().to_owned()).collect::<Vec<_>>();
    for line in lines {
        if let Some(answer) = line.strip_prefix("answer:") {
            topic.answer = answer.trim().to_owned();
        } else if let Some(list) = line.strip_prefix("one:") {
            topic.one.extend(names(list));
        } else if let Some(list) = line.strip_prefix("many:") {
            topic.many.extend(names(list));
        } else {
            topic.asks.push(line);
        }
    }
    if topic.answer.is_empty() || topic.asks.is_empty() {
        return Err(format!("topic [{}] needs an answer and at least one question", topic.id).into());
    }
    Ok(topic)
}

impl Corpus {
    /// Reads the files of `dir`; `broad` adds what the second stage of training draws from besides.
    pub fn read(dir: &Path, broad: bool) -> Res<Self> {
        let topics = sections(&dir.join("topics.txt"))?
            .into_iter()
            .map(|(id, lines)| topic(id, lines))
            .collect::<Res<Vec<_>>>()?;
        let (mut ids, mut answers) = (HashSet::new(), HashSet::new());
        for topic in &topics {
            if !ids.insert(&topic.id) || !answers.insert(&topic.answer) {
                return Err(format!("topic [{}] or its answer stands twice", topic.id).into());
            }
        }
        let forms = sections(&dir.join("forms.txt"))?.into_iter().collect();
        let mut off_topic: Sections = sections(&dir.join("off_topic.txt"))?.into_iter().collect();
        if broad {
            for (name, lines) in sections(&dir.join("broad.txt"))? {
                off_topic.entry(name).or_default().extend(lines);
            }
        }
        let refusal = off_topic.get("answer").and_then(|lines| lines.first()).ok_or("off_topic.txt has no [answer]")?;
        Ok(Self { topics, forms, refusal: refusal.clone(), off_topic })
    }

    /// The lines of a section of `forms.txt`; none if there is no such section.
    pub fn forms(&self, section: &str) -> &[String] {
        self.forms.get(section).map_or(&[], Vec::as_slice)
    }

    /// The lines of a section of `off_topic.txt`; none if there is no such section.
    pub fn off_topic(&self, section: &str) -> &[String] {
        self.off_topic.get(section).map_or(&[], Vec::as_slice)
    }

    /// The text of an answer.
    pub fn answer(&self, id: &str) -> Option<&str> {
        if id == OFF_TOPIC {
            return Some(&self.refusal);
        }
        self.topics.iter().find(|topic| topic.id == id).map(|topic| topic.answer.as_str())
    }

    /// The answers as JSON lines, for whoever tests the model without reading this format.
    pub fn answers_jsonl(&self) -> String {
        let refusal = (OFF_TOPIC, self.refusal.as_str());
        let all = self.topics.iter().map(|topic| (topic.id.as_str(), topic.answer.as_str())).chain([refusal]);
        all.map(|(id, answer)| json!({"answer_id": id, "answer": answer}).to_string() + "\n").collect()
    }
}

/// Reads an evaluation set: JSON lines of `question` and `answer_id`.
pub fn read_asked(path: &Path) -> Res<Vec<Asked>> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let parse = |line: &str| -> Res<Asked> {
        let value: Value = serde_json::from_str(line)?;
        let field = |name: &str| {
            value.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("{line}: no {name}"))
        };
        Ok(Asked { question: field("question")?, answer_id: field("answer_id")? })
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}
