//! The ledger: who owes whom, entries, and what people do by hand.
//!
//! | route | answers |
//! |---|---|
//! | `GET /api/v1/ledger` | all accounts and their sums |
//! | `GET /api/v1/ledger/entries?peer=&limit=` | signed entries, newest first, each with its envelope |
//! | `GET /api/v1/ledger/check` | whether what is stored is what the counters say |
//! | `POST /api/v1/ledger/promise` | an IOU by hand: `{"peer", "amount", "due_days"}` |
//! | `POST /api/v1/ledger/redeem` | discharges what a peer owes: `{"peer", "amount", "forgive", "reference"}` |
//! | `POST /api/v1/ledger/request` | asks a peer to pay: `{"peer", "amount"}` |
//! | `POST /api/v1/ledger/convict` | whoever runs this node has seen that a peer computes wrongly: `{"peer"}` |
//! | `POST /api/v1/ledger/limit` | what a peer may owe: `{"peer", "amount"}`, without an amount what it has earned |
//! | `GET /api/v1/trust?peer=` | what peers are worth here, and why |
//!
//! Amounts are integers, in micro-credits.

use std::{str::FromStr, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use libp2p::PeerId;
use quelea_ledger::{Hash, trust::Dealing};
use quelea_wire::{ErrorCode, time::unix_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::{
    ApiState, parse, refuse,
    shape::{self, Failure, List, answers, seconds},
};
use crate::{
    inference::InferError,
    ledger::{Asks, Entry, FORGIVEN, Ledger, Standing, Totals},
};

/// How long a peer may take to sync, once a connection to it stands.
const SYNC: Duration = Duration::from_secs(10);

/// How long what is asked by hand waits for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Entries in an answer at most.
const ENTRIES_MAX: usize = 10_000;

/// When what a request asks for is due at last, in days.
const REQUEST_DAYS: u64 = 14;

/// The longest that an IOU may run: creditors take it for due then, whatever it says.
const IOU_DAYS_MAX: u64 = quelea_ledger::overdue::LONGEST_MS / DAY_MS;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Discharged by payment outside.
const OUTSIDE: u8 = 0;

#[derive(utoipa::OpenApi)]
#[openapi(paths(accounts, entries, check, promise, redeem, request, limit, convict, trust))]
pub(super) struct Described;

answers! {
    /// All accounts, and their sums.
    Accounts = "quelea.ledger/v1" {
        generated_at: String, items: Vec<AccountItem>, unit: String, totals: LedgerTotals,
        /// What all who have proven nothing may owe together.
        pool: LedgerPool,
    }

    LedgerTotals { owed: u64, owing: u64, held: u64, }
    LedgerPool { limit: u64, }

    /// An account with a peer: `owed` is what it owes, negative where this node does.
    AccountItem {
        peer_id: String, owed: i64, issued: u64, issued_discharged: u64, received: u64, received_discharged: u64, held: u64,
        limit: u64, limit_by_operator: bool, proven: bool, granted: Option<u64>, synced: bool, overdue: u64,
        asked_at_s: Option<f64>,
        default_since_s: Option<f64>, asks: Option<PaymentAsked>, frozen: Option<String>,
    }

    /// A peer's request to be paid.
    PaymentAsked { amount: u64, at_s: f64, deadline_s: f64, ; peer_id: String, }

    /// Signed entries, newest first, and open requests to be paid.
    Entries = "quelea.ledger.entries/v1" { generated_at: String, items: Vec<EntryItem>, requests: Vec<PaymentAsked>, }

    /// `kind` is `note` or `redeem`, `by` is `me` or `peer`; the envelope is what was signed, in hex.
    EntryItem {
        id: String, peer_id: String, kind: String, by: String, seq: u64, at_s: f64, amount: u64, total: u64, hold: Option<String>,
        due_at_s: Option<f64>, method: Option<String>, acknowledged: Option<bool>, envelope: String,
    }

    /// Whether what is stored is what the counters say.
    LedgerChecked = "quelea.ledger.check/v1" { ok: bool, accounts: usize, entries: usize, faults: Vec<LedgerFault>, }

    LedgerFault { peer_id: String, what: String, }

    /// An IOU that was signed.
    Promised = "quelea.ledger.promise/v1" { peer_id: String, amount: u64, id: String, }
    Redeemed = "quelea.ledger.redeem/v1" { peer_id: String, amount: u64, id: String, }
    Requested = "quelea.ledger.request/v1" { peer_id: String, amount: u64, }
    Limited = "quelea.ledger.limit/v1" { peer_id: String, limit: u64, by_operator: bool, }
    Convicted = "quelea.ledger.convict/v1" { peer_id: String, }

    /// What a peer is worth here (0 to 1), and why.
    TrustItem {
        peer_id: String, trust: f64, conduct: f64, commerce: f64, limit: Option<u64>, proven: bool, repaid: u64,
        paid_on_days: u64,
        overdue: u64, default_since_s: Option<f64>, no_credit_until_s: Option<f64>, little_trust_until_s: Option<f64>,
        convicted: bool,
        events: Vec<TrustEvent>,
    }

    TrustEvent { at_s: f64, what: String, amount: u64, before: f64, after: f64, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/ledger", get(accounts))
        .route("/api/v1/ledger/entries", get(entries))
        .route("/api/v1/ledger/check", get(check))
        .route("/api/v1/ledger/promise", post(promise))
        .route("/api/v1/ledger/redeem", post(redeem))
        .route("/api/v1/ledger/request", post(request))
        .route("/api/v1/ledger/limit", post(limit))
        .route("/api/v1/ledger/convict", post(convict))
        .route("/api/v1/trust", get(trust))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Wanted {
    peer: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PromiseRequest)]
struct Promise {
    peer: String,
    amount: u64,
    due_days: u64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RedeemRequest)]
struct Redeem {
    peer: String,
    amount: u64,
    #[serde(default)]
    forgive: bool,
    #[serde(default)]
    reference: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PaymentRequest)]
struct Request {
    peer: String,
    /// All that is owed, without it.
    amount: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConvictRequest)]
struct Convict {
    peer: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LimitRequest)]
struct Limit {
    peer: String,
    amount: Option<u64>,
}

pub(super) type Answer = Result<Value, InferError>;

fn answer(result: Answer) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => refuse(&error),
    }
}

fn peer_of(text: &str) -> Result<PeerId, InferError> {
    PeerId::from_str(text).map_err(|e| InferError::new(ErrorCode::Usage, format!("{text:?} is no peer id: {e}")))
}

fn account(standing: &Standing) -> Value {
    let account = standing.account;
    let owed = account.map_or(0, |account| account.owed);
    json!({
        "peer_id": standing.peer.to_string(),
        "owed": i64::try_from(owed).unwrap_or(if owed > 0 { i64::MAX } else { i64::MIN }),
        "issued": account.map_or(0, |account| account.issued),
        "issued_discharged": account.map_or(0, |account| account.discharged),
        "received": account.map_or(0, |account| account.received),
        "received_discharged": account.map_or(0, |account| account.redeemed),
        "held": account.map_or(0, |account| account.held),
        "limit": standing.limit,
        "limit_by_operator": standing.row.granted.is_some(),
        "proven": standing.proven,
        "granted": standing.granted.filter(|(_, until)| *until > unix_ms()).map(|(limit, _)| limit),
        "synced": account.is_some_and(|account| account.live),
        "overdue": standing.debt.amount,
        "asked_at_s": some_seconds(standing.debt.asked.at),
        "default_since_s": some_seconds(standing.debt.asked.defaulted),
        "asks": standing.asks.map(asks),
        "frozen": account.and_then(|account| account.frozen).map(|why| format!("{why:?}").to_lowercase()),
    })
}

/// A peer's request to be paid.
fn asks(asks: Asks) -> Value {
    json!({ "amount": asks.amount, "at_s": seconds(asks.at), "deadline_s": seconds(asks.deadline) })
}

/// An instant; nothing for never.
fn some_seconds(at: u64) -> Option<Value> {
    (at > 0 && at < u64::MAX).then(|| json!(seconds(at)))
}

/// All accounts, and their sums.
#[utoipa::path(get, path = "/api/v1/ledger", responses((status = 200, body = Accounts)))]
async fn accounts(State(state): State<ApiState>) -> Response {
    answer(listed(state.asker.plane.ledger()).await)
}

pub(super) async fn listed(ledger: &Ledger) -> Answer {
    let standings = ledger.standings().await?;
    let totals = Totals::of(standings.iter().filter_map(|standing| standing.account));
    let with_account = standings.iter().filter(|standing| standing.account.is_some());
    let mut list = shape::list("quelea.ledger/v1", with_account.map(account).collect());
    list["unit"] = json!("microcredit");
    list["totals"] = json!({ "owed": totals.owed, "owing": totals.owing, "held": totals.held });
    let rules = ledger.rules();
    list["pool"] = json!({ "limit": rules.pool });
    Ok(list)
}

/// Signed entries, newest first.
#[utoipa::path(get, path = "/api/v1/ledger/entries", params(Wanted), responses((status = 200, body = Entries)))]
async fn entries(State(state): State<ApiState>, Query(wanted): Query<Wanted>) -> Response {
    answer(entries_of(state.asker.plane.ledger(), wanted).await)
}

async fn entries_of(ledger: &Ledger, wanted: Wanted) -> Answer {
    let peer = wanted.peer.as_deref().map(peer_of).transpose()?;
    let entries = ledger.entries(peer, wanted.limit.unwrap_or(100).min(ENTRIES_MAX)).await?;
    let mut list = shape::list("quelea.ledger.entries/v1", entries.iter().map(entry).collect());
    let standings = ledger.standings().await?;
    let wanted = standings.iter().filter(|standing| peer.is_none_or(|peer| peer == standing.peer));
    let requests = wanted.filter_map(|standing| {
        let mut request = asks(standing.asks?);
        request["peer_id"] = json!(standing.peer.to_string());
        Some(request)
    });
    list["requests"] = requests.collect();
    Ok(list)
}

fn entry(entry: &Entry) -> Value {
    json!({
        "id": hex::encode(entry.id.0),
        "peer_id": entry.peer.to_string(),
        "kind": if entry.promises { "note" } else { "redeem" },
        "by": if entry.mine { "me" } else { "peer" },
        "seq": entry.seq,
        "at_s": seconds(entry.seq),
        "amount": entry.delta,
        "total": entry.total,
        "hold": entry.hold.map(|hold| hex::encode(hold.0)),
        "due_at_s": entry.due_at.map(seconds),
        "method": entry.method.map(|method| match method { 0 => "outside", FORGIVEN => "forgiven", _ => "cycle" }),
        "acknowledged": entry.promises.then_some(entry.acknowledged),
        "envelope": hex::encode(&entry.raw),
    })
}

/// Whether what is stored is what the counters say.
#[utoipa::path(get, path = "/api/v1/ledger/check", responses((status = 200, body = LedgerChecked)))]
async fn check(State(state): State<ApiState>) -> Response {
    answer(checked(state.asker.plane.ledger()).await)
}

async fn checked(ledger: &Ledger) -> Answer {
    let checked = ledger.check().await?;
    let faults = checked.faults.iter().map(|(peer, what)| json!({ "peer_id": peer.to_string(), "what": what }));
    Ok(json!({
        "schema": "quelea.ledger.check/v1",
        "ok": checked.faults.is_empty(),
        "accounts": checked.accounts,
        "entries": checked.entries,
        "faults": faults.collect::<Vec<_>>(),
    }))
}

/// The ledger, when the peer is connected and synced.
async fn synced(state: &ApiState, peer: PeerId) -> Result<&Ledger, InferError> {
    let plane = &state.asker.plane;
    let known = plane.handle.known(Some(peer)).await;
    let addresses = known.into_iter().flat_map(|known| known.known.addrs).collect();
    let connected = timeout(CONNECT, plane.handle.connect(peer, addresses)).await;
    let failed = |why: String| InferError::new(ErrorCode::NotConnected, format!("peer {peer} is not reached: {why}"));
    connected.map_err(|_| failed("it does not answer".into()))?.map_err(|error| failed(error.to_string()))?;
    let ledger = plane.ledger();
    ledger.ready(peer, Instant::now() + SYNC).await?;
    Ok(ledger)
}

/// Signs an IOU by hand.
#[utoipa::path(
    post, path = "/api/v1/ledger/promise",
    request_body = Promise,
    responses((status = 200, body = Promised), (status = 402, body = Failure, description = "the peer gives no such credit"))
)]
async fn promise(State(state): State<ApiState>, body: Bytes) -> Response {
    answer(promised(&state, &body).await)
}

async fn promised(state: &ApiState, body: &[u8]) -> Answer {
    let Promise { peer, amount, due_days } = parse(body)?;
    let peer = peer_of(&peer)?;
    if amount == 0 {
        return Err(InferError::new(ErrorCode::Usage, "an IOU over nothing"));
    }
    if due_days > IOU_DAYS_MAX {
        return Err(InferError::new(ErrorCode::Usage, format!("an IOU is due within {IOU_DAYS_MAX} days")));
    }
    let due_at = unix_ms().saturating_add(due_days.saturating_mul(DAY_MS));
    let name = synced(state, peer).await?.promise(peer, amount, due_at).await?;
    Ok(made("quelea.ledger.promise/v1", peer, amount, name))
}

/// Discharges what a peer owes.
#[utoipa::path(
    post, path = "/api/v1/ledger/redeem",
    request_body = Redeem,
    responses((status = 200, body = Redeemed), (status = 402, body = Failure, description = "the account is frozen"))
)]
async fn redeem(State(state): State<ApiState>, body: Bytes) -> Response {
    answer(redeemed(&state, &body).await)
}

async fn redeemed(state: &ApiState, body: &[u8]) -> Answer {
    let Redeem { peer, amount, forgive, reference } = parse(body)?;
    let peer = peer_of(&peer)?;
    let method = if forgive { FORGIVEN } else { OUTSIDE };
    let reference =
        if reference.is_empty() { Hash::ZERO } else { Hash(*blake3::hash(reference.as_bytes()).as_bytes()) };
    let name = synced(state, peer).await?.redeem(peer, amount, method, reference).await?;
    Ok(made("quelea.ledger.redeem/v1", peer, amount, name))
}

/// Asks a peer to pay.
#[utoipa::path(
    post, path = "/api/v1/ledger/request",
    request_body = Request,
    responses((status = 200, body = Requested), (status = 402, body = Failure, description = "the account is frozen"))
)]
async fn request(State(state): State<ApiState>, body: Bytes) -> Response {
    answer(requested(&state, &body).await)
}

async fn requested(state: &ApiState, body: &[u8]) -> Answer {
    let Request { peer, amount } = parse(body)?;
    let peer = peer_of(&peer)?;
    let ledger = synced(state, peer).await?;
    let owed = ledger.account(peer).await?.map_or(0, |account| u64::try_from(account.owed.max(0)).unwrap_or(u64::MAX));
    let amount = amount.unwrap_or(owed);
    if amount == 0 || amount > owed {
        let message = format!("the peer owes {owed} micro-credits");
        return Err(InferError::new(ErrorCode::Usage, message).hint("see 'quelea ledger balance'"));
    }
    ledger.request(peer, amount, unix_ms().saturating_add(REQUEST_DAYS * DAY_MS)).await?;
    Ok(json!({ "schema": "quelea.ledger.request/v1", "peer_id": peer.to_string(), "amount": amount }))
}

/// Says what a peer may owe; without an amount what it has earned.
#[utoipa::path(post, path = "/api/v1/ledger/limit", request_body = Limit, responses((status = 200, body = Limited)))]
async fn limit(State(state): State<ApiState>, body: Bytes) -> Response {
    answer(limited(&state, &body).await)
}

async fn limited(state: &ApiState, body: &[u8]) -> Answer {
    let Limit { peer, amount } = parse(body)?;
    let peer = peer_of(&peer)?;
    let limit = state.asker.plane.ledger().limit(peer, amount).await?;
    Ok(json!({
        "schema": "quelea.ledger.limit/v1", "peer_id": peer.to_string(), "limit": limit, "by_operator": amount.is_some(),
    }))
}

/// Says that a peer computes wrongly: it gets no credit and no work any more.
#[utoipa::path(post, path = "/api/v1/ledger/convict", request_body = Convict, responses((status = 200, body = Convicted)))]
async fn convict(State(state): State<ApiState>, body: Bytes) -> Response {
    answer(convicted(&state, &body).await)
}

async fn convicted(state: &ApiState, body: &[u8]) -> Answer {
    let Convict { peer } = parse(body)?;
    let (peer, plane) = (peer_of(&peer)?, &state.asker.plane);
    if peer == plane.handle.local() {
        return Err(InferError::new(ErrorCode::Usage, "this is this node itself"));
    }
    plane.convict(peer, "its operator has seen that it computes wrongly").await;
    Ok(json!({ "schema": "quelea.ledger.convict/v1", "peer_id": peer.to_string() }))
}

/// What peers are worth here, and why.
#[utoipa::path(get, path = "/api/v1/trust", params(Wanted), responses((status = 200, body = List<TrustItem>)))]
async fn trust(State(state): State<ApiState>, Query(wanted): Query<Wanted>) -> Response {
    answer(trusted(&state, wanted).await)
}

async fn trusted(state: &ApiState, wanted: Wanted) -> Answer {
    let only = wanted.peer.as_deref().map(peer_of).transpose()?;
    let plane = &state.asker.plane;
    let conduct = plane.handle.known(only).await;
    let standings = plane.ledger().standings().await?;
    let commerce = |peer: &PeerId| standings.iter().find(|standing| standing.peer == *peer);
    let mut peers: Vec<PeerId> =
        conduct.iter().map(|known| known.peer).chain(standings.iter().map(|standing| standing.peer)).collect();
    peers.sort_unstable();
    peers.dedup();
    let items = peers.iter().filter(|peer| only.is_none_or(|only| only == **peer)).map(|peer| {
        let points = conduct.iter().find(|known| known.peer == *peer).map_or(0, |known| known.known.conduct);
        worth(peer, points, commerce(peer))
    });
    Ok(shape::list("quelea.trust/v1", items.collect()))
}

/// Conduct (what of it is above 0) up to 0.1 and commerce from −1 to 0.9, and what the two make: 0 to 1.
fn worth(peer: &PeerId, points: u16, standing: Option<&Standing>) -> Value {
    let conduct = f64::from(points) / CONDUCT;
    let commerce = standing.map_or(0.0, |standing| f64::from(standing.commerce) / 1e6);
    let events = standing.map_or(&[][..], |standing| &standing.recent).iter().map(|past| {
        let (what, amount) = match past.dealing {
            Dealing::Transfer { amount } => ("transfer", amount),
            Dealing::Redeemed { amount } => ("redeemed", amount),
            Dealing::Failed { amount, proven: true } => ("failed", amount),
            Dealing::Failed { amount, proven: false } => ("unfinished", amount),
            Dealing::Defaulted { overdue } => ("default", overdue),
            Dealing::Settled => ("default_paid", 0),
            Dealing::Evidence => ("evidence", 0),
        };
        json!({
            "at_s": seconds(past.at),
            "what": what,
            "amount": amount,
            "before": f64::from(past.before) / 1e6,
            "after": f64::from(past.after) / 1e6,
        })
    });
    let remembered = standing.and_then(|standing| standing.row.remembered(unix_ms()));
    json!({
        "peer_id": peer.to_string(),
        "trust": (conduct + commerce).clamp(0.0, 1.0),
        "conduct": conduct,
        "commerce": commerce,
        "limit": standing.map(|standing| standing.limit),
        "proven": standing.is_some_and(|standing| standing.proven),
        "repaid": standing.map_or(0, |standing| standing.row.repaid),
        "paid_on_days": standing.map_or(0, |standing| standing.row.days),
        "overdue": standing.map_or(0, |standing| standing.debt.amount),
        "default_since_s": standing.and_then(|standing| some_seconds(standing.debt.asked.defaulted)),
        "no_credit_until_s": remembered.and_then(|(until, _)| some_seconds(until)),
        "little_trust_until_s": remembered.and_then(|(_, until)| some_seconds(until)),
        "convicted": standing.is_some_and(|standing| standing.row.convicted),
        "events": events.collect::<Vec<_>>(),
    })
}

/// Points of conduct that are one: the best score is a tenth of that.
const CONDUCT: f64 = 100_000.0;

fn made(schema: &str, peer: PeerId, amount: u64, name: Hash) -> Value {
    json!({ "schema": schema, "peer_id": peer.to_string(), "amount": amount, "id": hex::encode(name.0) })
}
