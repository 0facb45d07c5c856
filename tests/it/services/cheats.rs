//! Callers that do not pay, providers that answer rubbish, and a flood: what they take is nothing, or what a newcomer may owe.

use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::join_all};
use libp2p::swarm::Stream;
use quelea_ledger::{Hash, message::Hold};
use quelea_service::{
    Answer, Ask, Call, CallId, Fault, FrameReader, FrameWriter, Listed, ServiceStream, job_hash, protocol_id,
};
use quelea_wire::ErrorCode;
use serde_json::Value;

use crate::{
    cheats::{NETWORK, peer::Cheat},
    harness::{Daemon, Launch, until},
};

/// What `echo` costs, in micro-credits.
const PRICE: u64 = 1000;

/// Results that a caller may have unpaid at once.
const UNPAID: u8 = 32;

async fn provider() -> Daemon {
    Launch::new().args(&["--network", NETWORK, "--service", "echo"]).start().await
}

fn call(n: u8, hold: Option<[u8; 16]>, input: &[u8]) -> Call {
    Call {
        id: CallId([n; 16]),
        hold,
        price: PRICE,
        remaining_ms: 20_000,
        version: 1,
        name: "echo".parse().unwrap(),
        input: input.to_vec(),
    }
}

/// Calls, and gives the last word.
async fn ask(cheat: &Cheat, call: Call) -> Answer {
    let stream = cheat.stream_of(protocol_id(&cheat.network)).await;
    last_word(stream, call).await
}

async fn last_word(stream: Stream, call: Call) -> Answer {
    let (read, write) = stream.split();
    // The writer lives as long as the answer is waited for: its end would be the call's.
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    writer.ask(&Ask::Call(Box::new(call))).await.unwrap();
    loop {
        match reader.answer().await.unwrap().expect("a last word") {
            Answer::Accepted { .. } | Answer::Progress(_) => {}
            last => return last,
        }
    }
}

#[track_caller]
fn refused(answer: Answer, code: ErrorCode, says: &str) {
    let Answer::Error(fault) = answer else { panic!("{answer:?}") };
    assert!(fault.code == code && fault.message.contains(says) && fault.amount == 0, "{fault:?}");
}

/// A hold for exactly this call.
fn hold_for(cheat: &Cheat, n: u8, input: &[u8], max: u64) -> Hold {
    let job = job_hash(&CallId([n; 16]), &"echo".parse().unwrap(), input);
    Hold { job_hash: Hash(job), max, ..cheat.hold(n, max) }
}

async fn reserve(cheat: &Cheat, hold: Hold) {
    assert!(cheat.say(cheat.framed(cheat.signed(hold))).await, "a hold is a packet");
}

async fn account(node: &Daemon, with: &Cheat) -> Option<Value> {
    let ledger = node.command(&["ledger", "balance", "--json"]).await.expect(0).json();
    let id = with.id.to_string();
    ledger["items"].as_array().unwrap().iter().find(|account| account["peer_id"] == id.as_str()).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_hold_for_exactly_this_call_nothing_is_done() {
    let provider = provider().await;
    let cheat = Cheat::synced(&provider).await;
    refused(ask(&cheat, call(1, None, b"free?")).await, ErrorCode::PaymentRequired, "no hold");
    // One that never comes, and one that somebody else might have.
    refused(ask(&cheat, call(2, Some([9; 16]), b"x")).await, ErrorCode::LedgerNotReady, "");
    reserve(&cheat, hold_for(&cheat, 3, b"other", PRICE)).await;
    refused(ask(&cheat, call(3, Some([3; 16]), b"this")).await, ErrorCode::PaymentRequired, "something else");
    reserve(&cheat, hold_for(&cheat, 4, b"x", PRICE - 1)).await;
    refused(ask(&cheat, call(4, Some([4; 16]), b"x")).await, ErrorCode::PaymentRequired, "reserves 0.000999");
    // Beyond what a newcomer may have open.
    reserve(&cheat, hold_for(&cheat, 5, b"x", 300_000)).await;
    refused(ask(&cheat, call(5, Some([5; 16]), b"x")).await, ErrorCode::NoCredit, "limit");
    // Forged: signed by nobody who owes.
    let other = Cheat::new(&provider);
    let forged = other.signed(hold_for(&cheat, 6, b"x", PRICE));
    cheat.say(cheat.framed(forged)).await;
    refused(ask(&cheat, call(6, Some([6; 16]), b"x")).await, ErrorCode::LedgerNotReady, "");
    // At the price of yesterday.
    reserve(&cheat, hold_for(&cheat, 7, b"x", PRICE)).await;
    let cheap = Call { price: 1, ..call(7, Some([7; 16]), b"x") };
    refused(ask(&cheat, cheap).await, ErrorCode::PaymentRequired, "costs 0.001000");
    let listed = provider.command(&["service", "list", "--json"]).await.expect(0).json();
    assert!(listed["items"].as_array().unwrap().iter().all(|item| item["answered"] == 0), "{listed}");
    // A hold for this call is enough.
    let answer = ask(&cheat, call(7, Some([7; 16]), b"x")).await;
    assert_eq!(answer, Answer::Result { amount: PRICE, output: b"x".to_vec() });
    provider.command(&["ledger", "verify"]).await.expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_results_and_does_not_pay_is_refused_after_a_few() {
    let provider = provider().await;
    let cheat = Cheat::synced(&provider).await;
    for n in 1..=UNPAID {
        reserve(&cheat, hold_for(&cheat, n, b"mine", PRICE)).await;
        let answer = ask(&cheat, call(n, Some([n; 16]), b"mine")).await;
        assert!(matches!(answer, Answer::Result { amount: PRICE, .. }), "{n}: {answer:?}");
    }
    let next = UNPAID + 1;
    reserve(&cheat, hold_for(&cheat, next, b"mine", PRICE)).await;
    refused(ask(&cheat, call(next, Some([next; 16]), b"mine")).await, ErrorCode::NoCredit, "not paid yet");
    // What was done is answered again, and asked for again: it is the same call.
    let again = ask(&cheat, call(1, Some([1; 16]), b"mine")).await;
    assert_eq!(again, Answer::Result { amount: PRICE, output: b"mine".to_vec() });
    refused(ask(&cheat, call(1, Some([1; 16]), b"else")).await, ErrorCode::CallConflict, "another");
    let account = account(&provider, &cheat).await.unwrap();
    assert!(account["held"].as_u64().unwrap() <= 250_000, "{account}");
    // Somebody honest is served.
    let mut honest = Cheat::synced(&provider).await;
    reserve(&honest, hold_for(&honest, 1, b"hi", PRICE)).await;
    assert!(matches!(ask(&honest, call(1, Some([1; 16]), b"hi")).await, Answer::Result { .. }));
    honest.promise(1).await;
}

/// What a hostile provider says to a call, after its list.
enum Rubbish {
    Bytes(Vec<u8>),
    Words(Vec<Answer>),
    HangsUp,
}

fn listed(price: u64) -> Listed {
    Listed {
        name: "echo".parse().unwrap(),
        version: 1,
        price,
        input_max: 1024,
        output_max: 1024,
        deadline_ms: 10_000,
        at_once: 1,
        running: 0,
        waiting: 0,
        took_ms: 0,
        about: "\u{1b}[31mred".into(),
    }
}

async fn answer_with(stream: ServiceStream, rubbish: &Rubbish) {
    let (read, mut write) = stream.split();
    let asked = FrameReader::new(read).ask().await.unwrap();
    if matches!(asked, Some(Ask::List(_))) {
        let mut writer = FrameWriter::new(write);
        writer.answer(&Answer::Listed(vec![listed(PRICE)])).await.unwrap();
        return writer.close().await.unwrap();
    }
    // Whoever calls may have hung up by now.
    match rubbish {
        Rubbish::Bytes(bytes) => drop(write.write_all(bytes).await),
        Rubbish::Words(words) => {
            let mut writer = FrameWriter::new(write);
            for word in words {
                if writer.answer(word).await.is_err() {
                    return;
                }
            }
            let _ = writer.close().await;
        }
        Rubbish::HangsUp => {}
    }
}

async fn answer_all(cheat: &mut Cheat, rubbish: &Rubbish) {
    loop {
        let stream = cheat.called().await;
        answer_with(stream, rubbish).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_answers_rubbish_is_paid_nothing() {
    let caller = Launch::new().args(&["--network", NETWORK]).start().await;
    let accepted = Answer::Accepted { version: 1, price: PRICE };
    let result = |amount| Answer::Result { amount, output: b"x".to_vec() };
    let fault = |code, amount| Answer::Error(Fault { code, amount, retry_ms: 0, message: "\u{7}no".into() });
    for (what, rubbish, exit, says) in [
        ("bytes", Rubbish::Bytes(vec![0xff; 100]), 8, "QUE-8007"),
        ("a length", Rubbish::Bytes(vec![0xff, 0xff, 0xff, 0x7f, 18]), 8, "QUE-8007"),
        ("a result before all", Rubbish::Words(vec![result(PRICE)]), 8, "out of turn"),
        ("more than was agreed", Rubbish::Words(vec![accepted.clone(), result(PRICE + 1)]), 8, "out of turn"),
        ("a dearer call", Rubbish::Words(vec![Answer::Accepted { version: 1, price: PRICE + 1 }]), 8, "out of turn"),
        ("a list", Rubbish::Words(vec![accepted.clone(), Answer::Listed(Vec::new())]), 8, "a list out of turn"),
        ("twice", Rubbish::Words(vec![accepted.clone(), accepted.clone()]), 8, "out of turn"),
        ("a failure for money", Rubbish::Words(vec![fault(ErrorCode::ServiceFailed, PRICE)]), 1, "QUE-8003"),
        ("an end", Rubbish::HangsUp, 6, "QUE-2006"),
        ("progress without an end", Rubbish::Words(endless(&accepted)), 8, "beyond what was agreed"),
    ] {
        let mut cheat = Cheat::synced(&caller).await;
        let peer = cheat.id.to_string();
        let args = ["service", "call", "echo", "hi", "--peer", &peer, "--timeout", "20s"];
        let calling = caller.command(&args);
        let ended = tokio::select! {
            ended = calling => ended,
            () = answer_all(&mut cheat, &rubbish) => panic!("it answers for ever"),
        };
        let ended = ended.expect(exit).says(&[says]);
        assert!(!ended.stderr.contains('\u{7}'), "{what}: {}", ended.stderr);
        until(&format!("nothing owed and nothing held after {what}"), async || {
            let account = account(&caller, &cheat).await?;
            (account["issued"] == 0 && account["owed"] == 0).then_some(())
        })
        .await;
    }
    caller.command(&["ledger", "verify"]).await.expect(0);
}

fn endless(accepted: &Answer) -> Vec<Answer> {
    let piece = Answer::Progress(vec![b'x'; 16 << 10]);
    std::iter::once(accepted.clone()).chain(std::iter::repeat_n(piece, 600)).collect()
}

/// Calls faster than they may come, of one who does not care for the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_calls_holds_up_nobody_else() {
    let provider = provider().await;
    provider.command(&["service", "price", "echo", "0"]).await.expect(0);
    let caller = Launch::new().args(&["--network", NETWORK]).bootstrap(&provider).start().await;
    let peer = provider.peer();
    let flooding = Cheat::synced(&provider).await;
    let (in_swing, swings) = tokio::sync::oneshot::channel();
    let flood = async {
        let mut in_swing = Some(in_swing);
        let protocol = protocol_id(&flooding.network);
        for round in 0..40_u32 {
            // Those that are refused are reset, before or after they are negotiated.
            let opening = (0..32).map(|_| flooding.try_stream(protocol.clone()));
            let streams: Vec<Stream> = join_all(opening).await.into_iter().flatten().collect();
            if streams.is_empty() {
                break;
            }
            for (n, stream) in streams.into_iter().enumerate() {
                let mut writer = FrameWriter::new(stream);
                let id = [u8::try_from(n).unwrap(), u8::try_from(round).unwrap(), 7].repeat(6);
                let id = CallId(id[..16].try_into().unwrap());
                let free = Call { id, price: 0, ..call(0, None, &[b'x'; 60_000]) };
                let _ = writer.ask(&Ask::Call(Box::new(free))).await;
            }
            in_swing.take().map(|swings: tokio::sync::oneshot::Sender<()>| swings.send(()));
        }
    };
    let honest = async {
        swings.await.unwrap();
        for n in 0..10 {
            let said = format!("honest {n}");
            let answer = caller.command(&["service", "call", "echo", &said, "--peer", peer, "--json"]).await;
            assert_eq!(answer.expect(0).json()["output"], said.as_str());
        }
    };
    tokio::join!(flood, honest);
    assert!(provider.metric("quelea_rate_limited_total", "").await > 0.0, "nobody was limited");
    // Nothing of it is left.
    until("no call running", async || {
        let listed = provider.command(&["service", "list", "--json"]).await.expect(0).json();
        let echo = listed["items"].as_array().unwrap().iter().find(|item| item["name"] == "echo")?.clone();
        (echo["running"] == 0 && echo["waiting"] == 0).then_some(())
    })
    .await;
}
