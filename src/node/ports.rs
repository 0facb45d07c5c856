//! Whether a listen address is free.
//!
//! libp2p opens TCP listeners so that the port may be shared, which hole punching needs. Two nodes on one port would then
//! take each other's connections without a word, so an address is tried plainly first.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// Tries to take `addr` for a moment.
pub(crate) fn check_free(addr: &Multiaddr) -> Result<(), String> {
    let mut parts = addr.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    let (kind, port, taken) = match parts.next() {
        Some(Protocol::Tcp(port)) => ("TCP", port, TcpListener::bind(SocketAddr::new(ip, port)).err()),
        Some(Protocol::Udp(port)) => ("UDP", port, UdpSocket::bind(SocketAddr::new(ip, port)).err()),
        _ => return Ok(()),
    };
    match taken {
        None => Ok(()),
        Some(error) if error.kind() == io::ErrorKind::AddrInUse => Err(format!(
            "{kind} port {port} is in use on {ip}; stop what uses it, or choose another with --port (0 takes a free one)"
        )),
        Some(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "{kind} port {port} may not be opened by this user ({error}); choose one above 1023 with --port"
        )),
        Some(error) => Err(format!("cannot listen on {addr}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let addr = |port: u16| format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
        let error = check_free(&addr(port)).unwrap_err();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        assert_eq!(check_free(&addr(0)), Ok(()));
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        assert!(check_free(&"/ip4/203.0.113.7/tcp/0".parse().unwrap()).is_err());
    }
}
