//! `quelea model pull`: a model from peers, from the web, or from a file.

mod disk;

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use quelea_wire::{ErrorCode, ModelId};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::disk::{adopted, imported, show, store};
pub(super) use self::disk::{import, kept, list, ps, rm};
use super::{
    args::{Global, PullArgs},
    client::{Daemon, unusable},
    exit::{CliError, Exit},
    infer::interrupted,
    output::note,
};
use crate::{
    api::models::described,
    home::Home,
    hub::{Hub, Place},
    node::{GRACE, Node, settings::Settings},
    weights::{
        Parts,
        fetch::{Progress, STALL, blocking},
    },
};

/// The longest line of an answer: a model's description.
const LINE_MAX: usize = 1 << 20;

/// Between two drawings of the progress bar.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Cells of the progress bar.
const BAR: u64 = 30;

pub(in crate::cli) async fn pull(global: &Global, args: PullArgs) -> Result<(), CliError> {
    let place = Place::parse(&args.what)?;
    let model = match (args.what.parse::<ModelId>(), place) {
        (Ok(id), _) => by_id(global, &args, id).await?,
        (Err(_), _) if args.layers != Parts::All => {
            let error =
                CliError::new(ErrorCode::Usage, "parts of a model are pulled by its id: only all of a file has one");
            return Err(error.hint("leave --layers out, or give the model's id"));
        }
        (Err(_), Some(place)) => from_web(global, &args, &place).await?,
        (Err(_), None) => imported(store(global, args.models_quota)?, PathBuf::from(&args.what)).await?,
    };
    if let Some(output) = &args.output {
        if model["whole"] != true {
            let message = "only a whole model is a GGUF file; pull all of it for --output";
            return Err(CliError::new(ErrorCode::Usage, message));
        }
        let (path, to) = (PathBuf::from(model["path"].as_str().unwrap_or_default()), output.clone());
        blocking(move || std::fs::copy(&path, &to))
            .await?
            .map_err(|e| CliError::new(ErrorCode::StorageFailed, format!("{}: {e}", output.display())))?;
    }
    let refused = model["progress"]["refused"].as_u64().unwrap_or(0);
    if refused > 0 {
        note(&format!("{refused} chunk(s) from peers were corrupt; they were refused and fetched from others"));
    }
    show(global, &model, "quelea.pull/v1")
}

/// Downloads a file and puts it into the store.
async fn from_web(global: &Global, args: &PullArgs, place: &Place) -> Result<Value, CliError> {
    let store = store(global, args.models_quota)?;
    let hub = Hub::from_env()?;
    let (progress, seen) = watch::channel(Progress::default());
    let drawing = tokio::spawn(draw(seen));
    let (folder, room) = (store.downloads(), |bytes| store.room_for(bytes));
    let fetched = tokio::select! {
        fetched = hub.fetch(place, &folder, &room, &progress) => fetched.map_err(CliError::from),
        () = interrupted() => Err(stopped()),
    };
    drop(progress);
    let _ = drawing.await;
    let file = fetched?;
    let shown = args.what.clone();
    Ok(described(&blocking(move || adopted(&store, Path::new(&file), &shown)).await??))
}

fn stopped() -> CliError {
    CliError::new(ErrorCode::Cancelled, "interrupted")
        .hint("what has come is kept; pulling again goes on from there")
        .exit(Exit::Interrupted)
}

async fn by_id(global: &Global, args: &PullArgs, id: ModelId) -> Result<Value, CliError> {
    if args.bootstrap.is_empty() {
        return through_daemon(global, args, id).await;
    }
    let home = Home::new(global.data_dir.clone()).map_err(unusable)?;
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.models = Some(home.models());
    settings.models_quota = args.models_quota;
    let node = Node::start(settings).await?;
    let pulled = async {
        node.wait_for_bootstrap(&args.bootstrap).await?;
        let (progress, seen) = watch::channel(Progress::default());
        let drawing = tokio::spawn(draw(seen));
        let pulled = node.puller().pull(id, args.layers, STALL, &progress).await;
        let last = *progress.borrow();
        drop(progress);
        let _ = drawing.await;
        Ok((pulled?, last))
    };
    let pulled = tokio::select! {
        pulled = pulled => pulled,
        () = interrupted() => Err(stopped()),
    };
    node.shutdown(GRACE).await;
    let (kept, last) = pulled?;
    let mut model = described(&kept);
    model["progress"] = json!(last);
    Ok(model)
}

async fn through_daemon(global: &Global, args: &PullArgs, id: ModelId) -> Result<Value, CliError> {
    let wanted = json!({ "model": id.to_string(), "parts": args.layers.to_string() });
    let daemon = Daemon::find(global)?;
    let mut answer = daemon.lines(daemon.post_stream("/api/v1/models/pull", &wanted).await?, LINE_MAX);
    let (progress, seen) = watch::channel(Progress::default());
    let drawing = tokio::spawn(draw(seen));
    let mut last = None;
    while let Some(event) = answer.next::<Value>().await? {
        if let Ok(now) = serde_json::from_value::<Progress>(event["progress"].clone()) {
            progress.send_replace(now);
        }
        last = Some(event);
    }
    drop(progress);
    let _ = drawing.await;
    match last {
        Some(mut event) if event["type"] == "done" => {
            let mut model = event["model"].take();
            model["progress"] = event["progress"].take();
            Ok(model)
        }
        Some(event) if event["type"] == "error" => {
            let error: crate::InferError = serde_json::from_value(event["error"].clone())
                .map_err(|e| CliError::new(ErrorCode::Internal, e.to_string()))?;
            Err(error.into())
        }
        _ => Err(CliError::new(ErrorCode::DaemonUnreachable, "the daemon stopped in the middle of the pull")
            .hint("start it again and pull again: what has come is kept")),
    }
}

/// Draws progress on stderr while it changes; nothing where nobody watches.
async fn draw(mut seen: watch::Receiver<Progress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let (started, mut first) = (Instant::now(), u64::MAX);
    while seen.changed().await.is_ok() {
        let now = *seen.borrow_and_update();
        first = first.min(now.bytes);
        let filled = (now.bytes * BAR).checked_div(now.total).unwrap_or(0);
        let bar: String = (0..BAR).map(|i| if i < filled { '#' } else { '.' }).collect();
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = (now.bytes - first).saturating_mul(1000) / millis;
        let line = format!(
            "\r[{bar}] {} of {} MiB  {} MiB/s  {} peers ",
            now.bytes >> 20,
            now.total >> 20,
            rate >> 20,
            now.peers
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
        tokio::time::sleep(DRAW_EVERY).await;
    }
    let _ = std::io::stderr().write_all(b"\n");
}
