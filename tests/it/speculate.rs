//! Guessed tokens: the same answer in fewer passes, here and over a chain.

use serde_json::Value;

use crate::harness::{DEMO, Swarm, ids, quelea, swarm};

/// A text that goes in circles, and one that does not.
const CIRCLES: &str =
    "one two three four five six seven, one two three four five six seven, one two three four five six";
const STRAIGHT: &str = "What is a relay?";

/// The ways to draw: without chance, and with.
const DRAWS: [&[&str]; 2] = [&[], &["--temperature", "0.9", "--top-k", "20", "--seed", "7", "--repeat-penalty", "1.1"]];

const ASK: [&str; 6] = ["infer", "--json", "--raw", "--ignore-eos", "--max-tokens", "40"];

/// An answer of the whole model, unsplit.
async fn here(args: &[&str], prompt: &str) -> Value {
    quelea(&[&ASK, &["--route", "local", "--model", DEMO][..], args, &[prompt]].concat()).await.expect(0).json()
}

fn said(answer: &Value, name: &str) -> u64 {
    answer["speculation"][name].as_u64().unwrap_or_else(|| panic!("{name} of {answer}"))
}

#[tokio::test]
async fn guesses_change_nothing_but_the_number_of_passes() {
    for draw in DRAWS {
        for prompt in [CIRCLES, STRAIGHT] {
            let plain = here(draw, prompt).await;
            assert_eq!(plain["speculation"], Value::Null);
            for speculate in ["auto", "1", "4", "7"] {
                let answer = here(&[&["--speculate", speculate], draw].concat(), prompt).await;
                assert_eq!((ids(&answer), &answer["text"]), (ids(&plain), &plain["text"]), "{speculate}: {prompt}");
                assert_eq!(said(&answer, "passes") + said(&answer, "accepted") + 1, 40, "{speculate}: {answer}");
            }
        }
    }
    // The model drafts for itself: all that it guesses is right, with chance, too.
    for draw in DRAWS {
        let plain = here(draw, STRAIGHT).await;
        let answer = here(&[&["--speculate", "7", "--draft", DEMO], draw].concat(), STRAIGHT).await;
        assert_eq!(ids(&answer), ids(&plain));
        assert!(said(&answer, "passes") < 20, "{answer}");
    }
}

#[tokio::test]
async fn over_a_chain_guesses_save_round_trips() {
    let Swarm { boot, workers } = swarm(DEMO, &["0..2", "2..4", "4..6"]).await;
    for draw in DRAWS {
        let plain = here(draw, CIRCLES).await;
        let args = [&ASK, &["--speculate", "4", "--draft", DEMO][..], draw, &[CIRCLES]].concat();
        let answer = boot.command(&args).await.expect(0).json();
        assert_eq!((ids(&answer), &answer["text"]), (ids(&plain), &plain["text"]));
        assert_eq!(answer["hops"].as_array().unwrap().len(), 3);
        assert!(said(&answer, "passes") < 30, "{answer}");
        // What was verified is what every stage computed, wrong guesses included; of the last pass all rows but the
        // last answer a token.
        let prompt =
            answer["prompt_ids"].as_array().unwrap().len() - answer["cached_tokens"].as_u64().unwrap() as usize;
        let rows = prompt as u64 + said(&answer, "passes") + said(&answer, "proposed");
        assert!(answer["hops"].as_array().unwrap().iter().all(|hop| hop["rows"] == rows), "{rows}: {answer}");
    }
    for worker in &workers {
        worker.until_sessions(0).await;
    }
}

#[tokio::test]
async fn a_draft_of_another_vocabulary_is_refused() {
    let refused = quelea(&[&ASK, &["--route", "local", "--draft", "no-such-file.gguf", STRAIGHT][..]].concat()).await;
    refused.expect(5).says(&["no-such-file.gguf"]);
    quelea(&[&ASK, &["--speculate", "9", STRAIGHT][..]].concat()).await.expect(2).says(&["from 1 to 7"]);
}
