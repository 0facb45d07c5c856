//! Every packet that a host sends or gets, and what may not be among them.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    net::{AddressFamily, RecvFlags, SocketType, eth, recv, socket, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::net::Host;

/// What nobody may read.
const MARKERS: [&str; 6] = ["multistream", "/noise", "/yamux", "libp2p", "quelea", "x-parity"];

/// The longest of them, less one: a marker may begin in one packet and end in the next.
const TAIL: usize = 10;

/// Room for a segment as the kernel hands it on before it is cut, 64 KiB and headers.
const PACKET: usize = 80 << 10;

/// What waits in the kernel while this process does something else.
const BACKLOG: usize = 64 << 20;

/// What was heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Packets by kind, like `TCP 443` or `UDP to 224.0.0.251 port 5353`.
    pub kinds: BTreeMap<String, u64>,
    /// Bytes inside TCP.
    pub bytes: u64,
    /// TCP connections, each way for itself.
    flows: HashMap<([u8; 4], u16, [u8; 4], u16), Flow>,
    /// What may not be.
    pub wrong: Vec<String>,
}

/// One way of a connection, followed from record to record of TLS.
#[derive(Debug, Default)]
struct Flow {
    /// The sequence number of the next byte.
    next: Option<u32>,
    /// The first bytes of a record, until there are five.
    header: Vec<u8>,
    /// Bytes of the record that are still to come.
    rest: usize,
    tail: Vec<u8>,
    /// Bytes that were not seen come before: records cannot be told apart any more.
    torn: bool,
}

/// Listens to a host until it is told to stop.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Heard>>,
}

impl Capture {
    /// Listens to all interfaces of `host`. Only `port` may be spoken, over TCP, and in TLS.
    pub fn new(host: &Host, port: u16) -> Self {
        let socket = packets(host.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut heard = Heard::default();
            let mut packet = vec![0; PACKET];
            while !told.load(Ordering::Relaxed) {
                match recv(&socket, packet.as_mut_slice(), RecvFlags::empty()) {
                    Ok((length, _)) => heard.packet(&packet[..length], port),
                    // Nobody has said anything for a while.
                    Err(error) if error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::INTR => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(heard)
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Heard {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

/// A thread inside a namespace; it ends with what it does.
fn inside<T: Send + 'static>(host: Host, what: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        let namespace = File::open(format!("/run/netns/{}", host.namespace)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        what()
    });
    thread.join().unwrap()
}

/// A socket that gets all packets of the host.
fn packets(host: Host) -> OwnedFd {
    inside(host, || {
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL)).unwrap();
        sockopt::set_socket_recv_buffer_size_force(&socket, BACKLOG).unwrap();
        let wait = Duration::from_millis(200);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(wait)).unwrap();
        socket
    })
}

/// The ports on which the host's programs listen, other than on loopback: `tcp 443`, `udp 5353`.
pub fn open_ports(host: &Host) -> Vec<String> {
    let table = |name: &'static str| {
        inside(host.clone(), move || std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))
            .unwrap_or_default()
    };
    let mut open = Vec::new();
    for (name, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for line in table(name).lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), state) = (fields.next(), fields.nth(1)) else { continue };
            let (address, port) = local.split_once(':').unwrap();
            let loopback = address == "0100007F" || address == "00000000000000000000000001000000";
            if state == Some(listening) && !loopback {
                open.push(format!("{} {}", name.trim_end_matches('6'), u16::from_str_radix(port, 16).unwrap()));
            }
        }
    }
    open.sort();
    open.dedup();
    open
}

impl Heard {
    /// Connections, both ways of each taken together.
    pub fn connections(&self) -> usize {
        self.flows.len().div_ceil(2)
    }

    fn packet(&mut self, packet: &[u8], port: u16) {
        let kind = match packet.get(12..14) {
            // Who has which address, and IPv6's way to ask that: the kernel's own words.
            Some([0x08, 0x06]) => "ARP".to_owned(),
            Some([0x86, 0xdd]) => self.ip6(&packet[14..]),
            Some([0x08, 0x00]) => self.ip4(&packet[14..], port),
            other => self.not_allowed(format!("a frame of type {other:?}")),
        };
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn not_allowed(&mut self, what: String) -> String {
        if !self.wrong.contains(&what) {
            self.wrong.push(what.clone());
        }
        what
    }

    fn ip6(&mut self, packet: &[u8]) -> String {
        // Reports about groups have a hop-by-hop header before them.
        let next = match packet.get(6) {
            Some(0) => packet.get(40),
            next => next,
        };
        if next == Some(&58) {
            return "ICMPv6".to_owned();
        }
        let to = packet.get(24..40).and_then(|to| <[u8; 16]>::try_from(to).ok()).map(Ipv6Addr::from);
        self.not_allowed(format!("IPv6 protocol {next:?} to {to:?}"))
    }

    fn ip4(&mut self, packet: &[u8], port: u16) -> String {
        let header = usize::from(packet[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        // A segment that was not cut yet has no length in its header.
        let packet = if length == 0 { packet } else { &packet[..length.min(packet.len())] };
        let address = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().unwrap() };
        let (from, to) = (address(12), address(16));
        let (protocol, inner) = (packet[9], &packet[header..]);
        let port_at = |at: usize| inner.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
        let (source, target) = (port_at(0), port_at(2));
        let name = match protocol {
            6 if source == port || target == port => {
                self.tcp((from, source, to, target), inner);
                return format!("TCP {port}");
            }
            6 => "TCP".to_owned(),
            // The bridge, which has no address, says what it listens to.
            2 if from == [0; 4] => return "IGMP of the bridge".to_owned(),
            17 => "UDP".to_owned(),
            other => format!("IP protocol {other}"),
        };
        let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
        self.not_allowed(format!("{name} from {from} to {to} port {target}"))
    }

    fn tcp(&mut self, key: ([u8; 4], u16, [u8; 4], u16), segment: &[u8]) {
        let data = segment.get(usize::from(segment[12] >> 4) * 4..).unwrap_or_default();
        let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
        let flow = self.flows.entry(key).or_default();
        if segment[13] & 0x02 != 0 {
            // A connection begins, perhaps with ports that another one had.
            *flow = Flow { next: Some(sequence.wrapping_add(1)), ..Flow::default() };
        }
        let Some(next) = flow.next else { return };
        // What was sent before is skipped; what is missing tears the flow.
        let known = next.wrapping_sub(sequence);
        let ahead = i32::from_ne_bytes(known.to_ne_bytes()) < 0;
        flow.torn |= ahead;
        let fresh = if ahead { data } else { data.get(known as usize..).unwrap_or_default() };
        if fresh.is_empty() {
            return;
        }
        flow.next = Some(sequence.wrapping_add(u32::try_from(data.len()).unwrap()));
        self.bytes += u64::try_from(fresh.len()).unwrap();
        let mut wrong = flow.marker(fresh);
        wrong = wrong.or_else(|| flow.not_tls(fresh));
        if let Some(wrong) = wrong {
            let (from, to) = (Ipv4Addr::from(key.0), Ipv4Addr::from(key.2));
            self.not_allowed(format!("{wrong} from {from} port {} to {to} port {}", key.1, key.3));
        }
    }
}

impl Flow {
    fn marker(&mut self, bytes: &[u8]) -> Option<String> {
        self.tail.extend(bytes.iter().map(u8::to_ascii_lowercase));
        let found = MARKERS.iter().find(|marker| self.tail.windows(marker.len()).any(|part| part == marker.as_bytes()));
        let keep = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..keep);
        found.map(|marker| format!("{marker:?}"))
    }

    /// Follows the records.
    fn not_tls(&mut self, mut bytes: &[u8]) -> Option<String> {
        while !self.torn && !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let [kind, major, _, high, low] = self.header[..] {
                if !(20..=23).contains(&kind) || major != 3 {
                    return Some(format!("no record of TLS but {:?}", self.header));
                }
                self.rest = usize::from(u16::from_be_bytes([high, low]));
                self.header.clear();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of Ethernet with IPv4 and TCP.
    fn frame(from: u16, to: u16, sequence: u32, syn: bool, data: &[u8]) -> Vec<u8> {
        let mut frame =
            [vec![0; 12], vec![8, 0, 0x45, 0], vec![0; 7], vec![6, 0, 0], vec![10, 0, 0, 1, 10, 0, 0, 2]].concat();
        let length = u16::try_from(40 + data.len()).unwrap();
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, if syn { 2 } else { 0x10 }, 0, 0, 0, 0, 0, 0]);
        frame.extend(data);
        frame
    }

    /// What the lab relies on: without this a capture that hears nothing would pass.
    #[test]
    fn what_may_not_be_is_found() {
        let said = |frames: &[Vec<u8>]| {
            let mut heard = Heard::default();
            frames.iter().for_each(|frame| heard.packet(frame, 443));
            heard.wrong
        };
        let begin = frame(5000, 443, 9, true, &[]);
        let fine = [22, 3, 1, 0, 3, 1, 2, 3, 23, 3, 3, 0, 1];
        let good = [begin.clone(), frame(5000, 443, 10, false, &fine), frame(5000, 443, 10, false, &fine[..7])];
        assert_eq!(said(&good), Vec::<String>::new());
        let clear = said(&[begin.clone(), frame(5000, 443, 10, false, b"\x13/multistream/1.0.0\n")]);
        assert!(clear[0].contains("multistream"), "{clear:?}");
        let http = said(&[begin.clone(), frame(5000, 443, 10, false, b"GET / HTTP/1.1\r\n")]);
        assert!(http[0].contains("no record of TLS"), "{http:?}");
        let split = [vec![22, 3, 1, 0, 200], b"aaaLIB".to_vec(), b"P2Pbb".to_vec()];
        let at = |n: usize| u32::try_from(10 + split[..n].iter().map(Vec::len).sum::<usize>()).unwrap();
        let split: Vec<_> = split.iter().enumerate().map(|(n, part)| frame(5000, 443, at(n), false, part)).collect();
        assert!(said(&[vec![begin], split].concat())[0].contains("libp2p"));
        assert!(said(&[frame(5000, 8468, 1, true, &[])])[0].contains("port 8468"));
        let mut udp = frame(5353, 5353, 0, false, &[]);
        udp[23] = 17;
        assert!(said(&[udp])[0].starts_with("UDP"));
    }
}
