//! Stop strings, log-probabilities and the other ways to ask for a token.

use serde_json::Value;

use crate::harness::{DEMO, Launch, ids, quelea};

const QUESTION: &str = "What is a relay?";

/// An answer of the whole model, unsplit.
async fn ask(args: &[&str]) -> Value {
    quelea(&[&["infer", "--json", "--route", "local", QUESTION], args].concat()).await.expect(0).json()
}

fn text(answer: &Value) -> &str {
    answer["text"].as_str().unwrap()
}

#[tokio::test]
async fn an_answer_ends_before_its_stop_string() {
    let whole = ask(&[]).await;
    assert_eq!((&whole["finish_reason"], &whole["stop_string"]), (&Value::from("stop"), &Value::Null));
    let words: Vec<&str> = text(&whole).split_whitespace().collect();
    // From within one word into the next: no token begins or ends with it.
    let stop = format!("{} {}", &words[3][words[3].len() - 1..], &words[4][..1]);
    let before = text(&whole).split(&stop).next().unwrap();

    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let args = ["infer", QUESTION, "--stop", "never said", "--stop", &stop];
    let stopped = daemon.command(&[&args[..], &["--json"]].concat()).await.expect(0).json();
    assert_eq!(text(&stopped), before);
    assert_eq!((&stopped["finish_reason"], &stopped["stop_string"]), (&"stop".into(), &Value::from(stop.as_str())));
    let (all, some) = (ids(&whole), ids(&stopped));
    assert!(some.len() < all.len() && all.starts_with(&some), "{some:?} of {all:?}");

    let shown = daemon.command(&args).await.expect(0);
    assert_eq!(shown.stdout, format!("{before}\n"), "nothing of the stop string is shown before it is known");
    shown.says(&["stopped before"]);
    // What only looked like a stop string comes out at the end.
    let end = text(&whole).chars().last().unwrap();
    assert_eq!(text(&ask(&["--stop", &format!("{end}{end}{end}")]).await), text(&whole));
}

#[tokio::test]
async fn log_probabilities_are_the_models_own() {
    let answer = ask(&["--logprobs", "3", "--max-tokens", "24"]).await;
    let likely = answer["logprobs"].as_array().unwrap();
    assert_eq!(likely.iter().map(|t| t["id"].as_u64().unwrap()).collect::<Vec<_>>(), ids(&answer));
    let bytes = |token: &Value| -> Vec<u8> { serde_json::from_value(token["bytes"].clone()).unwrap() };
    assert_eq!(likely.iter().flat_map(bytes).collect::<Vec<_>>(), text(&answer).as_bytes());
    for token in likely {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(
            (&top[0]["id"], &top[0]["logprob"]),
            (&token["id"], &token["logprob"]),
            "greedy takes the likeliest"
        );
        let falling: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(falling[0] <= 0.0 && falling.is_sorted_by(|a, b| a >= b), "{falling:?}");
    }
    // Penalties and bias change what is picked, not what the model thought.
    let first = likely[0]["id"].to_string();
    let banned = ask(&["--logprobs", "1", "--max-tokens", "1", "--logit-bias", &format!("{first}=-100")]).await;
    assert_ne!(banned["logprobs"][0]["id"], likely[0]["id"]);
    assert_eq!(banned["logprobs"][0]["top_logprobs"][0], likely[0]["top_logprobs"][0]);
    assert_eq!(ask(&["--max-tokens", "1"]).await["logprobs"], Value::Null);
}

#[tokio::test]
async fn what_is_asked_of_the_sampler_reaches_it() {
    let free = ["--ignore-eos", "--max-tokens", "24", "--temperature", "10", "--seed", "7"];
    let with = async |more: &[&str]| ids(&ask(&[&free, more].concat()).await);
    let plain = with(&["--top-k", "0", "--top-p", "1"]).await;
    assert_eq!(plain, with(&["--top-k", "0", "--top-p", "1"]).await, "one seed, one answer");
    let greedy = ids(&ask(&["--ignore-eos", "--max-tokens", "24"]).await);
    assert_ne!(plain, greedy);
    for cut in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        assert_eq!(with(&cut).await, greedy, "{cut:?} leaves the likeliest token only");
    }
    let distinct = |ids: &[u64]| ids.iter().collect::<std::collections::BTreeSet<_>>().len();
    let long = ["--ignore-eos", "--max-tokens", "64"];
    let repeats = distinct(&ids(&ask(&long).await));
    for penalty in [["--repeat-penalty", "3"], ["--presence-penalty", "2"], ["--frequency-penalty", "2"]] {
        let penalised = distinct(&ids(&ask(&[&long[..], &penalty, &["--repeat-last-n", "-1"]].concat()).await));
        assert!(penalised > repeats, "{penalty:?}: {penalised} different tokens, {repeats} without");
        assert_eq!(distinct(&ids(&ask(&[&long[..], &penalty, &["--repeat-last-n", "0"]].concat()).await)), repeats);
    }
}
