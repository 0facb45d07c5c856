//! The embedded model does what its page says, on questions that it has not been trained on.

use std::{collections::HashMap, path::Path, thread};

use quelea_engine::{
    Gguf,
    chain::Chain,
    sampler::{Sampler, SamplerConfig},
    template::{ChatTemplate, Message},
    tokenizer::Tokenizer,
};
use serde::Deserialize;

/// Of 200 held-out paraphrases so many must get exactly the right answer, in per cent.
const RIGHT_PERCENT: usize = 70;

/// Of 100 questions about other things so many must be declined, in per cent.
const DECLINED_PERCENT: usize = 90;

/// Longer than any answer that the model has learnt.
const MAX_TOKENS: usize = 96;

#[derive(Deserialize, Clone)]
struct Question {
    question: String,
    answer_id: String,
}

#[derive(Deserialize)]
struct Answer {
    answer_id: String,
    answer: String,
}

fn lines<T: for<'de> Deserialize<'de>>(file: &str) -> Vec<T> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn gguf() -> Gguf {
    Gguf::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/quelea-demo-q8_0.gguf")).unwrap()
}

/// Greedy answers to each question, asked alone.
fn answers(questions: &[Question]) -> Vec<String> {
    let gguf = gguf();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap().expect("the demo model has a chat template");
    let mut chain = Chain::load(&gguf, &[]).unwrap();
    let mut answer = |question: &Question| {
        chain.truncate(0);
        let text = template.render(&[Message::new("user", &question.question)], true, &serde_json::Map::new()).unwrap();
        let mut sampler = Sampler::new(SamplerConfig::default(), &[]).unwrap();
        let mut logits = chain.advance(&tokenizer.encode_chat(&text)).unwrap();
        let mut ids = Vec::new();
        while ids.len() < MAX_TOKENS {
            let id = sampler.sample(&logits).unwrap();
            if tokenizer.eos_ids().contains(&id) {
                break;
            }
            ids.push(id);
            logits = chain.advance(&[id]).unwrap();
        }
        tokenizer.decode(&ids).trim().to_owned()
    };
    questions.iter().map(&mut answer).collect()
}

/// How many of `file`'s questions are answered as they should be, and the others.
fn score(file: &str) -> (usize, usize, Vec<String>) {
    let right: HashMap<String, String> =
        lines::<Answer>("answers.jsonl").into_iter().map(|a| (a.answer_id, a.answer)).collect();
    let questions: Vec<Question> = lines(file);
    let half = questions.len() / 2;
    let (first, second) = (questions[..half].to_vec(), questions[half..].to_vec());
    let other = thread::spawn(move || answers(&second));
    let mut given = answers(&first);
    given.extend(other.join().unwrap());
    let wrong: Vec<String> = questions
        .iter()
        .zip(&given)
        .filter(|(question, answer)| right[&question.answer_id].trim() != answer.as_str())
        .map(|(question, answer)| format!("{} -> {answer}", question.question))
        .collect();
    (questions.len() - wrong.len(), questions.len(), wrong)
}

#[test]
fn paraphrases_get_the_right_answer() {
    let (right, all, wrong) = score("eval/paraphrases.jsonl");
    println!("{right} of {all} paraphrases answered rightly; wrong:\n{}", wrong.join("\n"));
    assert!(all >= 200 && right * 100 >= all * RIGHT_PERCENT);
}

#[test]
fn other_questions_are_declined() {
    let (declined, all, wrong) = score("eval/off_topic.jsonl");
    println!("{declined} of {all} off-topic questions declined; not:\n{}", wrong.join("\n"));
    assert!(all >= 100 && declined * 100 >= all * DECLINED_PERCENT);
}

/// Words in order, without case and punctuation.
fn normal(text: &str) -> String {
    let words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    words.join(" ")
}

#[test]
fn the_questions_are_not_in_the_training_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let trained: std::collections::HashSet<String> = ["topics.txt", "forms.txt", "off_topic.txt"]
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            text.lines().map(normal).collect::<Vec<_>>()
        })
        .collect();
    for file in ["eval/paraphrases.jsonl", "eval/off_topic.jsonl"] {
        for question in lines::<Question>(file) {
            assert!(!trained.contains(&normal(&question.question)), "{} is in the training text", question.question);
        }
    }
}

#[test]
fn the_embedded_file_is_small() {
    let bytes = std::fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/quelea-demo-q8_0.gguf")).unwrap();
    assert!(bytes.len() <= 8 << 20);
}
