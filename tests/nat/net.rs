//! Networks inside network namespaces: a bridge that stands for the internet, hosts on it, and routers with hosts behind.
//!
//! All addresses look like those of the internet, because libp2p treats private ones differently: `45.64.0.0/10`, a /24 of its
//! own for each. Nothing leaves the namespaces.

use std::{
    io::Write as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

/// What all names of the lab begin with; then follows the process id, so that two runs do not meet.
const PREFIX: &str = "quelea-nat";

/// What a lab needs, and what is missing of it.
pub fn missing() -> Option<String> {
    if std::env::var_os("QUELEA_NAT_LAB").is_none() {
        return Some("QUELEA_NAT_LAB is not set; the lab takes some minutes and needs root".into());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("this is not root: network namespaces and nftables need it".into());
    }
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables"), ("miniupnpd", "miniupnpd-nftables")] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("{tool} is missing: install {package}"));
        }
    }
    let probe = format!("{PREFIX}-{}-probe", std::process::id());
    let made = run("ip", &["netns", "add", &probe], "");
    let usable = made.and_then(|()| run("ip", &["netns", "exec", &probe, "nft", "-f", "-"], "add table ip probe"));
    let _ = run("ip", &["netns", "del", &probe], "");
    usable.err().map(|error| format!("no network namespaces with nftables here: {error}"))
}

/// Runs a program with this on its stdin; what it said on stderr when it failed.
fn run(program: &str, args: &[&str], stdin: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).map_err(|e| e.to_string())?;
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn must(program: &str, args: &[&str], stdin: &str) {
    run(program, args, stdin).unwrap_or_else(|error| panic!("{error}\n{stdin}"));
}

/// How a router translates and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    FullCone,
    RestrictedCone,
    PortRestricted,
    Symmetric,
}

/// A host: its namespace.
#[derive(Debug, Clone)]
pub struct Host {
    pub namespace: String,
}

/// The lab. Dropping it, or the death of this process by whatever, removes its namespaces and ends what runs in them.
pub struct Net {
    prefix: String,
    next: AtomicU8,
    guard: Child,
}

impl Net {
    pub fn new() -> Self {
        static LABS: AtomicU8 = AtomicU8::new(0);
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}-{}-{lab}", std::process::id());
        // In a session of its own, so that what kills the tests (Ctrl-C, a time limit) does not kill it; it cleans up when its
        // stdin closes, which it does when this process is gone.
        let clean = format!(
            "trap '' INT TERM HUP; cat >/dev/null; \
             for ns in $(ip netns list | cut -d' ' -f1 | grep '^{prefix}-'); do \
             ip netns pids $ns | xargs -r kill -9; ip netns del $ns; rm -rf /etc/netns/$ns; done"
        );
        let mut guard = Command::new("setsid");
        guard.args(["sh", "-c", &clean]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let net = Self { prefix, next: AtomicU8::new(1), guard: guard.spawn().unwrap() };
        net.namespace("internet");
        net.ip("internet", &["link add br0 type bridge", "link set br0 up"]);
        net
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn namespace(&self, name: &str) -> Host {
        let namespace = self.name(name);
        must("ip", &["netns", "add", &namespace], "");
        self.ip(name, &["link set lo up"]);
        Host { namespace }
    }

    fn ip(&self, name: &str, commands: &[&str]) {
        must("ip", &["-netns", &self.name(name), "-batch", "-"], &commands.join("\n"));
    }

    /// A line from `a`'s interface to `b`'s.
    fn line(&self, a: (&str, &str), b: (&str, &str)) {
        let (of_a, of_b) = (self.name(a.0), self.name(b.0));
        let args = ["link", "add", a.1, "netns", &of_a, "type", "veth", "peer", "name", b.1, "netns", &of_b];
        must("ip", &args, "");
        self.ip(a.0, &[&format!("link set {} up", a.1)]);
        self.ip(b.0, &[&format!("link set {} up", b.1)]);
    }

    /// Connects `name` to the internet at an address of its own.
    fn plug(&self, name: &str) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let port = format!("p{n}");
        self.line((name, "wan"), ("internet", &port));
        self.ip("internet", &[&format!("link set {port} master br0")]);
        let address = format!("45.{}.1.1", 64 + n);
        self.ip(name, &[&format!("addr add {address}/10 dev wan")]);
        address
    }

    /// A host with an address of the internet.
    pub fn public(&self, name: &str) -> (Host, String) {
        let host = self.namespace(name);
        (host, self.plug(name))
    }

    /// A host behind a router, which is called `{name}-router`.
    pub fn behind(&self, name: &str, router: Router) -> Host {
        let (host, gateway) = (self.namespace(name), format!("{name}-router"));
        self.namespace(&gateway);
        self.plug(&gateway);
        self.lan(name, &gateway, "192.168.1");
        self.rules(&gateway, &rules(router, "192.168.1.2"));
        host
    }

    /// A host behind its own router, which is behind one of the provider's; both port-restricted.
    pub fn behind_two(&self, name: &str) -> Host {
        let (host, gateway, provider) = (self.namespace(name), format!("{name}-router"), format!("{name}-provider"));
        self.namespace(&gateway);
        self.namespace(&provider);
        self.plug(&provider);
        self.line((&gateway, "wan"), (&provider, "lan"));
        self.ip(&provider, &["addr add 100.64.0.1/24 dev lan"]);
        self.ip(&gateway, &["addr add 100.64.0.2/24 dev wan", "route add default via 100.64.0.1"]);
        self.lan(name, &gateway, "192.168.1");
        self.rules(&gateway, &rules(Router::PortRestricted, "192.168.1.2"));
        self.rules(&provider, &rules(Router::PortRestricted, "100.64.0.2"));
        host
    }

    /// As [`Net::behind`] a port-restricted router, which opens ports by UPnP.
    pub fn behind_upnp(&self, name: &str, config: &std::path::Path) -> (Host, Child) {
        let host = self.behind(name, Router::PortRestricted);
        let router = self.name(&format!("{name}-router"));
        self.rules(&format!("{name}-router"), UPNP_RULES);
        // Multicast finds the router only with a way there.
        self.ip(name, &["route add 239.0.0.0/8 dev lan"]);
        std::fs::write(config, UPNP_CONFIG).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &router, "miniupnpd", "-d", "-f", config.to_str().unwrap(), "-P"]);
        command.arg(config.with_extension("pid")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        (host, command.spawn().unwrap())
    }

    fn lan(&self, host: &str, gateway: &str, net: &str) {
        self.line((host, "lan"), (gateway, "lan"));
        self.ip(gateway, &[&format!("addr add {net}.1/24 dev lan")]);
        self.ip(host, &[&format!("addr add {net}.2/24 dev lan"), &format!("route add default via {net}.1")]);
        let namespace = self.name(gateway);
        must("ip", &["netns", "exec", &namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"], "");
    }

    fn rules(&self, router: &str, rules: &str) {
        let namespace = self.name(router);
        if router.ends_with("-provider") {
            must("ip", &["netns", "exec", &namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"], "");
        }
        must("ip", &["netns", "exec", &namespace, "nft", "-f", "-"], rules);
    }

    /// The host's `/etc/hosts`: to be written before anything is started in it.
    pub fn names(&self, host: &Host, hosts: &str) {
        let dir = std::path::Path::new("/etc/netns").join(&host.namespace);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts"), hosts).unwrap();
    }

    /// A command inside a host.
    pub fn exec(host: &Host, program: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &host.namespace, program]);
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A router's rules. What comes in unasked for the router itself is dropped without a word: Linux would answer it, and keep
/// state about it.
fn rules(router: Router, inside: &str) -> String {
    let masquerade = if router == Router::Symmetric { "masquerade fully-random" } else { "masquerade" };
    let inbound = match router {
        Router::FullCone => format!("iifname wan meta l4proto {{ tcp, udp }} dnat to {inside}"),
        Router::RestrictedCone => {
            format!("iifname wan ip saddr @contacted meta l4proto {{ tcp, udp }} dnat to {inside}")
        }
        Router::PortRestricted | Router::Symmetric => String::new(),
    };
    format!(
        "table ip router {{
            set contacted {{ type ipv4_addr; flags dynamic, timeout; timeout 5m; }}
            chain prerouting {{ type nat hook prerouting priority dstnat; {inbound}
            }}
            chain postrouting {{ type nat hook postrouting priority srcnat; oifname wan {masquerade}
            }}
            chain input {{ type filter hook input priority filter; iifname wan ct state new drop
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                iifname lan oifname wan update @contacted {{ ip daddr }}
                iifname lan accept
                ct state established,related accept
                ct status dnat accept
            }}
        }}"
    )
}

/// The chains that miniupnpd fills.
const UPNP_RULES: &str = "table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { type nat hook prerouting priority dstnat; }
    chain postrouting_miniupnpd { type nat hook postrouting priority srcnat; }
}";

const UPNP_CONFIG: &str = "ext_ifname=wan
listening_ip=lan
enable_natpmp=no
enable_upnp=yes
secure_mode=yes
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=5d1c0000-0000-4000-8000-000000000001
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";
