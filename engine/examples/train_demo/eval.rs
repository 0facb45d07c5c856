//! What the trained file is held to: exact greedy answers to questions that it has not seen.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::D;

use crate::Res;
use crate::corpus::{Asked, Corpus, OFF_TOPIC, read_asked};
use crate::net::{Batch, Net};
use crate::questions::Questions;
use crate::vocab::Vocab;

/// No answer of the text comes near this many tokens.
const MAX_ANSWER: usize = 96;
/// Questions answered side by side.
const ROWS: usize = 16;
/// The two sets, in `eval/` of the text.
pub const SETS: [&str; 2] = ["paraphrases.jsonl", "off_topic.jsonl"];

/// Greedy answers to `questions`, each asked as the only turn of a conversation.
pub fn answers(net: &Net, vocab: &Vocab, questions: &[&str]) -> Res<Vec<String>> {
    let mut all = vec![String::new(); questions.len()];
    let mut order: Vec<usize> = (0..questions.len()).collect();
    order.sort_by_key(|i| questions[*i].len());
    for chunk in order.chunks(ROWS) {
        let mut texts = Vec::new();
        for i in chunk {
            let mut ids = vocab.turn("user", questions[*i])?;
            ids.extend(vocab.answer_start()?);
            texts.push(ids);
        }
        let starts: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut open: Vec<usize> = (0..texts.len()).collect();
        while !open.is_empty() {
            let next = next_tokens(net, vocab, &texts, &open)?;
            for (row, token) in open.iter().zip(&next) {
                texts[*row].push(*token);
            }
            let ends = open
                .iter()
                .zip(next)
                .filter(|(row, token)| *token == vocab.turn_end || texts[**row].len() - starts[**row] >= MAX_ANSWER);
            let ended: HashSet<usize> = ends.map(|(row, _)| *row).collect();
            open.retain(|row| !ended.contains(row));
        }
        for ((i, text), start) in chunk.iter().zip(&texts).zip(&starts) {
            all[*i] = vocab.decode(&text[*start..])?.trim().to_owned();
        }
    }
    Ok(all)
}

fn next_tokens(net: &Net, vocab: &Vocab, texts: &[Vec<u32>], open: &[usize]) -> Res<Vec<u32>> {
    let time = open.iter().map(|row| texts[*row].len()).max().unwrap_or_default();
    let mut batch = Batch { rows: open.len(), time, ..Batch::default() };
    for (i, row) in open.iter().enumerate() {
        batch.tokens.extend(&texts[*row]);
        batch.tokens.resize((i + 1) * time, vocab.end_of_text);
        batch.positions.push((i * time + texts[*row].len() - 1) as u32);
    }
    Ok(net.logits(&batch)?.argmax(D::Minus1)?.to_vec1()?)
}

/// The score of one set.
pub struct Score {
    /// Exactly the right answer.
    pub right: usize,
    /// Questions in the set.
    pub asked: usize,
    /// A line for each question that was answered otherwise.
    pub wrong: Vec<String>,
}

/// Asks a set of questions and compares the answers with the text.
pub fn score(net: &Net, vocab: &Vocab, corpus: &Corpus, set: &[Asked]) -> Res<Score> {
    let questions: Vec<&str> = set.iter().map(|asked| asked.question.as_str()).collect();
    let mut score = Score { right: 0, asked: set.len(), wrong: Vec::new() };
    for (asked, answer) in set.iter().zip(answers(net, vocab, &questions)?) {
        if corpus.answer(&asked.answer_id) == Some(answer.as_str()) {
            score.right += 1;
        } else {
            score.wrong.push(format!("{} [{}]: {answer}", asked.question, asked.answer_id));
        }
    }
    Ok(score)
}

/// Letters and digits only, in lower case, with single spaces.
fn normal(text: &str) -> String {
    let text = text.to_lowercase().replace('\'', "");
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The question without an opener and a closer that the training text could have put around it.
fn undressed(question: &str, corpus: &Corpus) -> Vec<String> {
    let whole = normal(question);
    let mut all = vec![whole.clone()];
    for opener in corpus.forms("opener") {
        if let Some(rest) = whole.strip_prefix(&(normal(opener) + " ")) {
            all.push(rest.to_owned());
        }
    }
    for text in all.clone() {
        for closer in corpus.forms("closer") {
            let closer = normal(closer);
            if let Some(rest) = text.strip_suffix(&closer).filter(|_| !closer.is_empty()) {
                all.push(rest.trim_end().to_owned());
            }
        }
    }
    all
}

/// Checks the text and the evaluation sets: every answer id exists, no question stands twice, none is a training
/// question, also not with an opener, a closer or a swap around it, and `answers.jsonl` says what the text says.
pub fn check(dir: &Path, corpus: &Corpus) -> Res<Vec<String>> {
    let mut complaints = Vec::new();
    let plain: HashSet<String> =
        Questions::new(corpus, false, true).all_plain().iter().map(|text| normal(text)).collect();
    let mut seen = HashSet::new();
    for name in SETS {
        let path = dir.join("eval").join(name);
        for asked in read_asked(&path)? {
            if corpus.answer(&asked.answer_id).is_none() {
                complaints.push(format!("{name}: no answer {} for: {}", asked.answer_id, asked.question));
            }
            if (name == SETS[1]) != (asked.answer_id == OFF_TOPIC) {
                complaints.push(format!("{name}: is in the wrong file: {}", asked.question));
            }
            if !seen.insert(normal(&asked.question)) {
                complaints.push(format!("{name}: stands twice: {}", asked.question));
            }
            if undressed(&asked.question, corpus).iter().any(|text| plain.contains(text)) {
                complaints.push(format!("{name}: is a training question: {}", asked.question));
            }
        }
    }
    let answers = std::fs::read_to_string(dir.join("answers.jsonl")).unwrap_or_default();
    if answers != corpus.answers_jsonl() {
        complaints.push("answers.jsonl is not what topics.txt says; training writes it".to_owned());
    }
    let mut asks: BTreeMap<String, &str> = BTreeMap::new();
    for topic in &corpus.topics {
        for ask in &topic.asks {
            if let Some(other) = asks.insert(normal(ask), &topic.id).filter(|other| *other != topic.id) {
                complaints.push(format!("topics.txt: [{other}] and [{}] both ask: {ask}", topic.id));
            }
        }
    }
    Ok(complaints)
}
