//! One connection's part: asks for substreams and passes on those that come.

use std::{
    collections::VecDeque,
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
const MAX_WAITING: usize = 16;

/// What the behaviour asks of a connection: one substream.
#[derive(Debug)]
pub struct Open(pub(crate) OpenId);

/// What a connection tells the behaviour.
#[derive(Debug)]
pub enum Report {
    /// The peer opened a substream.
    Inbound(Stream),
    /// The peer opened substreams faster than the loop turns, and one was reset.
    Flooded,
    /// What became of [`Open`].
    Opened(OpenId, Result<Stream, OpenError>),
}

/// The handler of one connection. Keeps no connection alive by itself: open streams do.
#[derive(Debug)]
pub struct Handler {
    protocol: StreamProtocol,
    /// Not longer than the behaviour's cap on openings.
    to_open: VecDeque<OpenId>,
    /// Not longer than the openings and [`MAX_WAITING`] together, and one.
    reports: VecDeque<Report>,
    waiting: usize,
    flooded: bool,
}

impl Handler {
    pub(crate) fn new(protocol: StreamProtocol) -> Self {
        Self { protocol, to_open: VecDeque::new(), reports: VecDeque::new(), waiting: 0, flooded: false }
    }

    fn inbound(&mut self, stream: Stream) {
        if self.waiting < MAX_WAITING {
            self.waiting = self.waiting.saturating_add(1);
            self.reports.push_back(Report::Inbound(stream));
        } else if !self.flooded {
            self.flooded = true;
            self.reports.push_back(Report::Flooded);
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Report;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenId;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ()).with_timeout(NEGOTIATION_TIMEOUT)
    }

    fn on_behaviour_event(&mut self, Open(id): Open) {
        self.to_open.push_back(id);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if let Some(report) = self.reports.pop_front() {
            match report {
                Report::Inbound(_) => self.waiting = self.waiting.saturating_sub(1),
                Report::Flooded => self.flooded = false,
                Report::Opened(..) => {}
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
