//! A payer that does not pay: it holds out a hold, or something like it, and sends rows and no vouchers, or forged ones. A stage
//! works for its exposure and what is vouched for, and for nothing else.

use futures::io::{ReadHalf, WriteHalf};
use libp2p::{identity::Keypair, swarm::Stream};
use quelea_ledger::{
    HoldId,
    message::{Hold, SignedMessage, Void, Voucher},
    receipt::job_hash,
};
use quelea_shard::{
    codec::{FrameReader, FrameWriter},
    frame::{self, Form, Frame, Open, Pay, RowsHeader, SessionId, StreamKind},
    protocol::initiate,
};
use quelea_wire::{ErrorCode, time::unix_ms};
use tokio::time::timeout;

use super::market::{FIRST, Market, asking};
use crate::{
    cheats::{NETWORK, peer::Cheat},
    harness::{DEMO, Daemon, Launch, PATIENCE, until},
    hostile::target::{Target, WIDTH},
};

/// What a row of an answer costs at the first stage, and what it works for in advance: 32 of them and 64 of a prompt.
const ROW: u64 = 3 * FIRST.0 / 1000;
const EXPOSURE: u64 = 3 * (32 * FIRST.0 + 64 * FIRST.1) / 1000;

/// Rows of a batch: a stage takes 32 batches at once.
const BATCH: u64 = 4;

/// How long a stage may take for a batch, in milliseconds: longer than anything here.
const STEP_MS: u32 = 120_000;

async fn market() -> Market {
    let first = Launch::new().serve(DEMO, "0..3").args(&["--network", NETWORK]);
    Market::open_in(NETWORK, &asking(first, FIRST)).await
}

/// Sessions of a cheat at the first stage, which gives its rows on to the second.
struct Sessions<'a> {
    market: &'a Market,
    cheat: &'a Cheat,
    said: FrameReader<ReadHalf<Stream>>,
    says: FrameWriter<WriteHalf<Stream>>,
    decode: FrameWriter<WriteHalf<Stream>>,
    /// Acknowledgements, which nobody reads.
    _acks: FrameReader<ReadHalf<Stream>>,
}

impl<'a> Sessions<'a> {
    async fn of(market: &'a Market, cheat: &'a Cheat) -> Self {
        let control = initiate(cheat.stream().await, StreamKind::Control).await.unwrap();
        let decode = initiate(cheat.stream().await, StreamKind::Decode).await.unwrap();
        let (said, says) = (control.reader, control.writer);
        Self { market, cheat, said, says, decode: decode.writer, _acks: decode.reader }
    }

    fn open(&self, session: SessionId, pay: Option<Pay>) -> Open {
        let second = self.market.second.peer().parse().unwrap();
        let open = Target::of(&self.market.first).open(self.cheat.id, second);
        let next_addrs = vec![self.market.second.addr().parse().unwrap()];
        Open { session, pay, next_addrs, step_deadline_ms: STEP_MS, ..open }
    }

    /// A hold for a session, as it should be.
    fn hold(&self, hold: HoldId, session: SessionId, max: u64) -> Hold {
        let Open { model, span, .. } = self.open(session, None);
        Hold { hold, job_hash: job_hash(&session.0, &model, &span), ..self.cheat.hold(1, max) }
    }

    /// Has the stage take this hold, or not.
    async fn reserve(&self, hold: Hold) {
        assert!(self.cheat.say(self.cheat.framed(self.cheat.signed(hold))).await);
    }

    async fn say(&mut self, frame: impl Into<Frame>) {
        self.says.send(&frame.into()).await.unwrap();
    }

    /// What the stage answers, but for what it commits to.
    async fn answer(&mut self) -> Frame {
        let answer = async {
            loop {
                let frame = self.said.next().await.unwrap().expect("an answer");
                if !matches!(frame, Frame::Commit(_)) {
                    return frame;
                }
            }
        };
        timeout(PATIENCE, answer).await.expect("an answer in time")
    }

    async fn refused(&mut self, open: Open) -> (ErrorCode, String) {
        self.say(open).await;
        match self.answer().await {
            Frame::Refuse(refuse) => (refuse.code, refuse.detail),
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn opened(&mut self, open: Open) {
        self.say(open).await;
        let answer = self.answer().await;
        assert!(matches!(answer, Frame::Accept(_)), "{answer:?}");
    }

    /// Sends so many rows of an answer, and some more.
    async fn rows(&mut self, session: SessionId, rows: u64) {
        let [per_batch, batches] = [BATCH, rows / BATCH + 4].map(|n| u16::try_from(n).unwrap());
        let values = vec![0.5; usize::try_from(WIDTH).unwrap() * usize::from(per_batch)];
        for n in 0..batches {
            let (seq, pos) = (u32::from(n), u32::from(n) * u32::from(per_batch));
            let total = u32::from(per_batch) * WIDTH * 4;
            let (last_row_only, rewind, rows) = (false, false, per_batch);
            let deadline_ms = STEP_MS;
            let header =
                RowsHeader { session, epoch: 1, seq, pos, rows, last_row_only, rewind, deadline_ms, total, offset: 0 };
            self.decode.queue_rows(Form::Rows, &header, &values);
        }
        self.decode.flush().await.unwrap();
    }

    /// Waits until the stage ends the session for want of vouchers; how many rows it had computed then.
    async fn stopped(&mut self) -> f64 {
        match self.answer().await {
            Frame::Fault(fault) => assert_eq!(fault.code, ErrorCode::NotCovered, "{}", fault.detail),
            other => panic!("{other:?}"),
        }
        self.market.first.until_sessions(0).await;
        self.market.first.metric("quelea_stage_rows_total", "").await
    }
}

fn pay(hold: HoldId) -> Option<Pay> {
    Some(Pay { hold: hold.0, price_decode: FIRST.0, price_prefill: FIRST.1 })
}

/// What the stage has of the cheat: promised, and held.
async fn has(stage: &Daemon, cheat: &Cheat) -> (u64, u64) {
    let account = super::market::accounts(stage).await.remove(&cheat.id.to_string()).expect("an account");
    assert!(account["frozen"].is_null(), "{account}");
    (account["received"].as_u64().unwrap(), account["held"].as_u64().unwrap())
}

/// Somebody honest is served as ever.
async fn serves_others(market: &Market) {
    let payer = market.payer().await;
    let answer = market.asked(&payer, &["What is a relay?"]).await.expect(0).json();
    let [first, second] = market.costs(&answer).map(i128::from);
    let owed = super::market::at_rest(&[&market.first, &market.second, &payer]).await;
    assert_eq!(owed, [first, second, -first - second]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_no_vouchers_gets_the_exposure_and_nothing_more() {
    let market = market().await;
    let mut cheat = Cheat::synced(&market.first).await;
    let (hold, session) = (HoldId([1; 16]), SessionId([1; 16]));
    let mut sessions = Sessions::of(&market, &cheat).await;
    sessions.reserve(sessions.hold(hold, session, 10_000)).await;
    let open = sessions.open(session, pay(hold));
    sessions.opened(open).await;
    sessions.rows(session, EXPOSURE / ROW).await;
    assert_eq!(sessions.stopped().await, (EXPOSURE / ROW) as f64);
    // Not again for the same hold, by whatever name.
    for session in [session, SessionId([2; 16])] {
        let open = sessions.open(session, pay(hold));
        let (code, why) = sessions.refused(open).await;
        assert_eq!((code, &*why), (ErrorCode::PaymentRequired, "the hold was worked for before"));
    }
    drop(sessions);
    assert_eq!(has(&market.first, &cheat).await.0, 0);
    // It may still pay.
    cheat.promise(EXPOSURE).await;
    assert_eq!(has(&market.first, &cheat).await.0, EXPOSURE);
    serves_others(&market).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vouchers_that_are_not_worth_anything_are_not_worked_for() {
    let market = market().await;
    let cheat = Cheat::synced(&market.first).await;
    let (hold, session) = (HoldId([1; 16]), SessionId([1; 16]));
    // For twelve rows and no more.
    let max = 12 * ROW;
    let mut sessions = Sessions::of(&market, &cheat).await;
    let other = HoldId([2; 16]);
    sessions.reserve(sessions.hold(hold, session, max)).await;
    sessions.reserve(sessions.hold(other, SessionId([2; 16]), 1000)).await;
    let open = sessions.open(session, pay(hold));
    sessions.opened(open).await;
    let voucher = |hold, cumulative| Voucher { hold, epoch: 1, cumulative };
    let of_another = SignedMessage::sign(&Keypair::generate_ed25519(), &cheat.network, voucher(hold, max)).unwrap();
    let envelopes = [
        cheat.signed(voucher(hold, max)),
        cheat.signed(voucher(hold, max / 2)),
        // The next four are refused.
        cheat.signed(voucher(hold, max + 1)),
        of_another.raw().0,
        cheat.signed(voucher(HoldId([3; 16]), 1000)),
        cheat.signed(cheat.note(unix_ms(), 1000, 1000)),
        // Good, and for another session.
        cheat.signed(voucher(other, 1000)),
    ];
    for envelope in envelopes {
        sessions.say(frame::Voucher { session, epoch: 1, envelope }).await;
    }
    let vouchers = async |result| {
        let text = market.first.fetch("/metrics").await.2;
        let of = format!("quelea_ledger_entries_total{{kind=\"voucher\",result=\"{result}\"");
        text.lines().find(|line| line.starts_with(&of)).and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    until("all are looked at", async || (vouchers("taken").await == Some(3)).then_some(())).await;
    assert_eq!(vouchers("rejected").await, Some(4));
    let covered = (EXPOSURE + max) / ROW;
    sessions.rows(session, covered).await;
    assert_eq!(sessions.stopped().await, covered as f64);
    // What was vouched for is held until it is paid.
    assert_eq!(has(&market.first, &cheat).await, (0, max + 1000));
    market.first.command(&["ledger", "verify"]).await.expect(0);
    serves_others(&market).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_none_opens_nothing() {
    let market = market().await;
    let cheat = Cheat::synced(&market.first).await;
    let mut sessions = Sessions::of(&market, &cheat).await;
    let name = |n: u8| (HoldId([n; 16]), SessionId([n; 16]));
    let refused = async |sessions: &mut Sessions<'_>, open: Open, code: ErrorCode, said: &str| {
        let (is, why) = sessions.refused(open).await;
        assert!(is == code && why.contains(said), "{said}: {is} {why}");
    };
    let (hold, session) = name(1);
    let open = |sessions: &Sessions<'_>, pay| sessions.open(session, pay);
    let opening = open(&sessions, None);
    refused(&mut sessions, opening, ErrorCode::PaymentRequired, "the price here is").await;
    let cheap = pay(hold).map(|pay| Pay { price_decode: 1, ..pay });
    let opening = open(&sessions, cheap);
    refused(&mut sessions, opening, ErrorCode::PaymentRequired, "by now").await;
    // For another session.
    sessions.reserve(sessions.hold(hold, name(9).1, 1000)).await;
    let opening = open(&sessions, pay(hold));
    refused(&mut sessions, opening, ErrorCode::PaymentRequired, "for something else").await;
    // Taken back.
    let (hold, session) = name(2);
    sessions.reserve(sessions.hold(hold, session, 1000)).await;
    assert!(cheat.say(cheat.framed(cheat.signed(Void { hold, reason: 0 }))).await);
    let opening = sessions.open(session, pay(hold));
    refused(&mut sessions, opening, ErrorCode::PaymentRequired, "").await;
    // Over before it begins.
    let (hold, session) = name(3);
    let ends = unix_ms() + 300;
    sessions.reserve(Hold { expires_at: ends, ..sessions.hold(hold, session, 1000) }).await;
    until("the hold to expire", async || (unix_ms() > ends).then_some(())).await;
    let opening = sessions.open(session, pay(hold));
    refused(&mut sessions, opening, ErrorCode::PaymentRequired, "expired").await;
    // More than it has credit for.
    let (hold, session) = name(4);
    sessions.reserve(sessions.hold(hold, session, 10_000_000)).await;
    let opening = sessions.open(session, pay(hold));
    refused(&mut sessions, opening, ErrorCode::NoCredit, "").await;
    // Never sent: the stage waits for a while.
    let (hold, session) = name(5);
    let opening = sessions.open(session, pay(hold));
    refused(&mut sessions, opening, ErrorCode::LedgerNotReady, "").await;
    assert_eq!(market.first.metric("quelea_stage_rows_total", "").await, 0.0);
    assert_eq!(has(&market.first, &cheat).await.0, 0);
    serves_others(&market).await;
}
