//! `quelea model coverage`: who holds which layers, as bars.

use quelea_wire::{ErrorCode, SpanRange};

use super::{
    args::{CoverageArgs, Global},
    client::Daemon,
    exit::CliError,
    infer::{absolute, short},
    output::{data_line, document, note, printable},
};
use crate::{
    inference::{CoverageHolder, CoverageReport, planner::size},
    node::{GRACE, Node, settings::Settings},
};

/// The widest bar. Models of more layers share its columns.
const COLUMNS: usize = 64;

/// How full a column is drawn where so many are ready: none, one, two, three or four, more.
const LEVELS: [char; 5] = ['.', '▂', '▄', '▆', '█'];

pub(super) async fn run(global: &Global, args: CoverageArgs) -> Result<(), CliError> {
    let report = if args.bootstrap.is_empty() {
        let model = escaped(&absolute(&args.model));
        let answer = Daemon::find(global)?.get(&format!("/api/v1/coverage?model={model}")).await?;
        serde_json::from_value(answer)
            .map_err(|e| CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {e}")))?
    } else {
        as_passing_peer(&args).await?
    };
    if global.json {
        return data_line(&document("quelea.coverage/v1", &report, serde_json::Value::Null)?);
    }
    for line in draw(&report) {
        data_line(&line)?;
    }
    if let Some(span) = report.missing.first() {
        note(&format!("hint: quelea daemon --model FILE --layers {span} --bootstrap …"));
    }
    Ok(())
}

/// A text inside a query, each byte that is not plain escaped.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn as_passing_peer(args: &CoverageArgs) -> Result<CoverageReport, CliError> {
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.compute = args.compute.options();
    settings.masking = super::masking::of_passing(&args.masked, &args.bootstrap)?;
    let node = Node::start(settings).await?;
    let report = async {
        node.wait_for_bootstrap(&args.bootstrap).await?;
        node.coverage(&absolute(&args.model)).await
    }
    .await;
    node.shutdown(GRACE).await;
    Ok(report?)
}

/// The report in lines: a bar of how many are ready for each layer, and one for each holder.
fn draw(report: &CoverageReport) -> Vec<String> {
    let layers = usize::from(report.layers);
    let covered = report.replicas.iter().filter(|count| **count > 0).count();
    let least = report.replicas.iter().min().copied().unwrap_or(0);
    let mut lines = vec![
        format!("model:      {} (layers 0..{layers}, {})", printable(&report.name), size(report.weight_bytes)),
        format!("covered:    {covered} of {layers} layers, each {least} time(s) at least"),
    ];
    if !report.missing.is_empty() {
        lines.push(format!("missing:    {} ({})", report.missing.join(", "), size(report.missing_bytes)));
    }
    let columns = layers.clamp(1, COLUMNS);
    let of_column = |column: usize| column * layers / columns..((column + 1) * layers).div_ceil(columns);
    let level = |column: usize| {
        let counts = report.replicas.get(of_column(column)).unwrap_or_default();
        let fewest = counts.iter().min().copied().unwrap_or(0);
        LEVELS[usize::try_from(fewest.min(3) + u64::from(fewest > 4)).unwrap_or(0)]
    };
    lines.push(format!("replicas    |{}|", (0..columns).map(level).collect::<String>()));
    for holder in &report.holders {
        let span: Option<SpanRange> = holder.layers.parse().ok();
        let mark = match holder.state.as_str() {
            "ready" => '#',
            "loading" => '+',
            _ => '-',
        };
        let holds = |column: usize| {
            let layers = of_column(column);
            span.is_some_and(|span| usize::from(span.start()) < layers.end && usize::from(span.end()) > layers.start)
        };
        let bar: String = (0..columns).map(|column| if holds(column) { mark } else { ' ' }).collect();
        lines.push(format!("{:<11} |{bar}| {}", short(&holder.peer), words(holder)));
    }
    if report.holders.is_empty() {
        lines.push("no peer offers any layer of this model".into());
    }
    lines
}

fn words(holder: &CoverageHolder) -> String {
    let here = if holder.here { ", this node" } else { "" };
    let price = match (holder.price_decode, holder.price_prefill) {
        (0, 0) => String::new(),
        (decode, prefill) => format!(", {decode} micro-credits per 1000 layer-rows, {prefill} of prompts"),
    };
    format!("{} {}, {} KV pages free{price}{here}", holder.layers, printable(&holder.state), holder.kv_pages_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(peer: &str, layers: &str, state: &str) -> CoverageHolder {
        CoverageHolder {
            peer: peer.into(),
            layers: layers.into(),
            state: state.into(),
            here: false,
            kv_pages_free: 7,
            decode_rows_per_s: 0,
            price_decode: u64::from(peer == "c"),
            price_prefill: 0,
        }
    }

    #[test]
    fn layers_are_bars_and_what_is_missing_is_a_gap() {
        let report = CoverageReport {
            model: "00".into(),
            name: "m".into(),
            layers: 6,
            weight_bytes: 6_000_000,
            replicas: vec![2, 2, 1, 0, 0, 9],
            missing: vec!["3..5".into()],
            missing_bytes: 2_000_000,
            holders: vec![
                holder("a", "0..3", "ready"),
                holder("b", "3..5", "loading"),
                holder("c", "5..6", "draining"),
            ],
        };
        let lines = draw(&report);
        assert_eq!(lines[1], "covered:    4 of 6 layers, each 0 time(s) at least");
        assert_eq!(lines[2], "missing:    3..5 (2.0 MB)");
        assert_eq!(lines[3], "replicas    |▄▄▂..█|");
        assert!(lines[4].contains("|###   | 0..3 ready, 7 KV pages free"), "{}", lines[4]);
        assert!(lines[5].contains("|   ++ |") && lines[6].contains("|     -|"), "{lines:?}");
        assert!(lines[6].ends_with("free, 1 micro-credits per 1000 layer-rows, 0 of prompts"), "{lines:?}");
    }

    #[test]
    fn many_layers_share_the_columns_and_the_thinnest_of_them_shows() {
        let mut replicas = vec![1; 200];
        replicas[100] = 0;
        let report = CoverageReport {
            model: "00".into(),
            name: "m".into(),
            layers: 200,
            weight_bytes: 0,
            replicas,
            missing: Vec::new(),
            missing_bytes: 0,
            holders: Vec::new(),
        };
        let lines = draw(&report);
        let bar = lines.iter().find(|line| line.starts_with("replicas")).unwrap();
        assert_eq!(bar.chars().filter(|c| "▂.".contains(*c)).count(), COLUMNS, "{bar}");
        assert!(bar.contains('.'), "{bar}");
    }

    #[test]
    fn a_path_goes_through_a_query() {
        assert_eq!(escaped("/a b/ü.gguf&x=1"), "/a%20b/%C3%BC.gguf%26x%3D1");
    }
}
