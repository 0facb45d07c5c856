//! One connection's part: asks for substreams and passes on those that come.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    StreamProtocol,
    core::upgrade::ReadyUpgrade,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, Stream, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use crate::behaviour::{OpenError, OpenId};

/// How long negotiating the protocol on a new substream may take.
pub(crate) const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Inbound streams that may wait for the behaviour. The swarm takes them within microseconds; a peer that fills this
/// opens streams faster than the loop turns, and loses the excess.
const MAX_WAITING_INBOUND: usize = 16;

/// What the behaviour asks of a connection.
#[derive(Debug)]
pub enum Command {
    /// Open one substream.
    Open(OpenId),
}

/// What a connection tells the behaviour.
#[derive(Debug)]
pub enum Report {
    /// The peer opened a substream.
    Inbound(Stream),
    /// What became of [`Command::Open`].
    Opened(OpenId, Result<Stream, OpenError>),
}

/// The handler of one connection. Keeps no connection alive by itself: open streams do.
#[derive(Debug)]
pub struct Handler {
    protocol: StreamProtocol,
    /// Not longer than the behaviour's cap on pending opens.
    to_open: VecDeque<OpenId>,
    /// Not longer than the pending opens and [`MAX_WAITING_INBOUND`] together.
    reports: VecDeque<Report>,
    waiting_inbound: usize,
    dropped: Arc<AtomicU64>,
}

impl Handler {
    pub(crate) fn new(protocol: StreamProtocol, dropped: Arc<AtomicU64>) -> Self {
        Self { protocol, to_open: VecDeque::new(), reports: VecDeque::new(), waiting_inbound: 0, dropped }
    }

    fn inbound(&mut self, stream: Stream) {
        if self.waiting_inbound < MAX_WAITING_INBOUND {
            self.waiting_inbound = self.waiting_inbound.saturating_add(1);
            self.reports.push_back(Report::Inbound(stream));
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenId;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ()).with_timeout(NEGOTIATION_TIMEOUT)
    }

    fn on_behaviour_event(&mut self, Command::Open(id): Command) {
        self.to_open.push_back(id);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if let Some(report) = self.reports.pop_front() {
            if matches!(report, Report::Inbound(_)) {
                self.waiting_inbound = self.waiting_inbound.saturating_sub(1);
            }
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
        }
        if let Some(id) = self.to_open.pop_front() {
            let protocol =
                SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), id).with_timeout(NEGOTIATION_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                self.inbound(stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: id }) => {
                self.reports.push_back(Report::Opened(id, Ok(stream)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: id, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Io(e) => OpenError::Io(e),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.reports.push_back(Report::Opened(id, Err(error)));
            }
            _ => {}
        }
    }
}
