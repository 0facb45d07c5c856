//! `quelea bench`.

use std::process::ExitCode;

use serde_json::json;

use super::{
    args::{Global, TransportArg},
    exit::CliError,
    output::{data_line, note},
};
use crate::bench::hop::{self, Transport};

pub(super) async fn hop(
    global: &Global,
    transport: Option<TransportArg>,
    rows: u32,
    bytes: u32,
) -> Result<ExitCode, CliError> {
    let transports = match transport {
        Some(TransportArg::Tcp) => vec![Transport::Tcp],
        Some(TransportArg::Quic) => vec![Transport::Quic],
        None => vec![Transport::Tcp, Transport::Quic],
    };
    if !global.json {
        note(&format!(
            "one-way time of a row of {bytes} bytes between two nodes on loopback, in one process; \
             echo is a bare libp2p stream, measured in turns with the hop"
        ));
    }
    let mut reports = Vec::new();
    for transport in transports {
        reports.push(hop::measure(transport, rows, bytes / 4 * 4).await?);
    }
    if global.json {
        let method = "two swarms in one process over loopback; half of the round trip; echo and hop in ten turns each";
        let document = json!({ "schema": "quelea.bench.hop/v1", "method": method, "items": reports });
        data_line(&document.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    data_line("transport   rows    echo p50   echo p95    hop p50    hop p95   hop/echo")?;
    for r in reports {
        data_line(&format!(
            "{:<9} {:>6} {:>8.0} µs {:>7.0} µs {:>7.0} µs {:>7.0} µs {:>9.2}×",
            format!("{:?}", r.transport).to_lowercase(),
            r.rows,
            r.echo.p50_us,
            r.echo.p95_us,
            r.hop.p50_us,
            r.hop.p95_us,
            r.ratio_p50
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
