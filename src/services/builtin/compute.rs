//! `compute`: small things that are the same wherever they are computed. What is wanted is said as JSON:
//!
//! | `op` | fields | gives |
//! |---|---|---|
//! | `hash` | `algorithm` (`blake3`, `sha2-256`), `data` or `data_hex` | `hex` |
//! | `eval` | `expression`: numbers, `+ - * / ^`, brackets, functions like `sin` and `sqrt` | `value` |
//! | `run` | what the [`Runner`] of this node takes | what it gives |
//!
//! An expression is bounded in length and depth before it is looked at, has no names of its own and no loops: what it takes is
//! proportional to its length.

use std::{sync::Arc, time::Duration};

use exmex::Express as _;
use futures::future::BoxFuture;
use quelea_service::Fault;
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::MILLI;
use crate::services::service::{About, Done, Job, Progress, Service, fault};

/// Bytes of an expression.
const EXPRESSION: usize = 1024;

/// Brackets within brackets.
const DEPTH: usize = 64;

/// Runs what a caller submits: plugged in by whoever has a sandbox.
pub(crate) trait Runner: Send + Sync {
    /// Runs it. The value is the whole question, as it came.
    fn run<'a>(&'a self, question: Value, job: &'a Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>>;
}

/// See the module.
pub(crate) struct Compute {
    pub(crate) runner: Option<Arc<dyn Runner>>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Question {
    Hash { algorithm: Algorithm, data: Option<String>, data_hex: Option<String> },
    Eval { expression: String },
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Algorithm {
    #[serde(rename = "blake3")]
    Blake3,
    #[serde(rename = "sha2-256")]
    Sha2,
}

impl Service for Compute {
    fn about(&self) -> About {
        About {
            version: 1,
            price: MILLI,
            // A contract of 64 KiB in hexadecimal, and what goes into it.
            input_max: 512 << 10,
            output_max: 256 << 10,
            deadline: Duration::from_secs(10),
            at_once: 4,
            queue: 64,
            about: "Hashes (blake3, sha2-256), evaluates arithmetic; a question is JSON with 'op'",
        }
    }

    fn call<'a>(&'a self, job: Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move {
            let question: Value = serde_json::from_slice(&job.input).map_err(|e| input(format!("not JSON: {e}")))?;
            if question["op"] == "run" {
                let Some(runner) = &self.runner else {
                    return Err(fault(ErrorCode::ServiceUnknown, "this node runs no submitted contracts"));
                };
                return runner.run(question, &job, progress).await;
            }
            let question: Question = serde_json::from_value(question).map_err(|e| input(e.to_string()))?;
            let answer = match question {
                Question::Hash { algorithm, data, data_hex } => hash(algorithm, data, data_hex)?,
                Question::Eval { expression } => {
                    json!({ "schema": "quelea.compute/v1", "value": eval(&expression)? })
                }
            };
            Ok(answer.to_string().into_bytes().into())
        })
    }
}

fn input(message: impl Into<String>) -> Fault {
    fault(ErrorCode::ServiceInput, message)
}

fn hash(algorithm: Algorithm, data: Option<String>, data_hex: Option<String>) -> Result<Value, Fault> {
    let data = match (data, data_hex) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => hex::decode(text).map_err(|e| input(format!("data_hex: {e}")))?,
        _ => return Err(input("give what is to be hashed as 'data' or as 'data_hex'")),
    };
    let digest = match algorithm {
        Algorithm::Blake3 => hex::encode(blake3::hash(&data).as_bytes()),
        Algorithm::Sha2 => hex::encode(ring::digest::digest(&ring::digest::SHA256, &data)),
    };
    Ok(json!({ "schema": "quelea.compute/v1", "hex": digest, "bytes": data.len() }))
}

/// The value of an expression; always a number that JSON has.
fn eval(expression: &str) -> Result<f64, Fault> {
    if expression.len() > EXPRESSION {
        return Err(input(format!("an expression has at most {EXPRESSION} bytes, not {}", expression.len())));
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    for c in expression.bytes() {
        match c {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > DEPTH {
        return Err(input(format!("brackets may be {DEPTH} deep, not {deepest}")));
    }
    let wrong = |error: exmex::ExError| input(format!("not an expression: {error}"));
    let parsed = exmex::FlatEx::<f64>::parse(expression).map_err(wrong)?;
    if let [name, ..] = parsed.var_names() {
        return Err(input(format!("{name:?} is no number, operator or function")));
    }
    let value = parsed.eval(&[]).map_err(wrong)?;
    if value.is_finite() { Ok(value) } else { Err(input("the expression has no finite value")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_have_the_values_that_people_expect() {
        for (text, value) in [
            ("1+1", 2.0),
            ("2*(3+4)^2", 98.0),
            ("-3+5", 2.0),
            ("10/4", 2.5),
            ("sqrt(2)^2", 2.000_000_000_000_000_4),
            ("0.5*.5", 0.25),
            ("2^10", 1024.0),
        ] {
            assert_eq!(eval(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_in_words() {
        let deep = format!("{}1{}", "(".repeat(DEPTH + 1), ")".repeat(DEPTH + 1));
        let long = format!("1{}", "+1".repeat(EXPRESSION));
        for (text, says) in [
            ("", "not an expression"),
            ("1+", "not an expression"),
            ("x+1", "\"x\" is no number"),
            ("1/0", "no finite value"),
            ("(1", "not an expression"),
            (deep.as_str(), "64 deep"),
            (long.as_str(), "at most 1024 bytes"),
        ] {
            let fault = eval(text).unwrap_err();
            assert!(fault.code == ErrorCode::ServiceInput && fault.message.contains(says), "{text}: {}", fault.message);
        }
        assert!(eval(&format!("{}1{}", "(".repeat(DEPTH), ")".repeat(DEPTH))).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(text in "[-+*/^()0-9a-z. ,{}|!<>=&%]{0,200}") {
            if let Ok(value) = eval(&text) {
                prop_assert!(value.is_finite());
            }
        }
    }

    /// Gives back what it was asked, for half of what it may cost.
    struct Half;

    impl Runner for Half {
        fn run<'a>(&'a self, question: Value, job: &'a Job, _: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
            Box::pin(async move { Ok(Done { output: question.to_string().into_bytes(), cost: Some(job.most / 2) }) })
        }
    }

    #[tokio::test]
    async fn contracts_are_run_by_whoever_can_and_cost_what_they_use() {
        let input = br#"{"op":"run","module":"00"}"#.to_vec();
        let job = || Job { input: input.clone(), most: 1000, remaining: Duration::from_secs(1) };
        let progress = Progress(tokio::sync::mpsc::channel(1).0);
        let nobody = Compute { runner: None }.call(job(), &progress).await.unwrap_err();
        assert_eq!(nobody.code, ErrorCode::ServiceUnknown);
        let done = Compute { runner: Some(Arc::new(Half)) }.call(job(), &progress).await.unwrap();
        assert_eq!((done.output, done.cost), (input.clone(), Some(500)));
    }

    #[test]
    fn hashes_are_the_published_ones() {
        let hex = |algorithm| hash(algorithm, Some("abc".into()), None).unwrap()["hex"].as_str().unwrap().to_owned();
        assert_eq!(hex(Algorithm::Sha2), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(Algorithm::Blake3), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        assert!(hash(Algorithm::Sha2, None, None).is_err());
        assert!(hash(Algorithm::Sha2, None, Some("zz".into())).is_err());
    }
}
