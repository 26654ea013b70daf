//! A network of the test's own: hosts in network namespaces on one bridge, whose links can be cut.

use std::{
    fs::File, net::Ipv4Addr, os::unix::fs::MetadataExt, path::PathBuf, process::Command, thread,
};

use nix::sched::{CloneFlags, setns};

/// The address of the bridge itself.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// A bridge in a namespace of its own, and the hosts on it; all are gone when this is dropped.
pub(crate) struct Network {
    hub: String,
    hosts: Vec<String>,
}

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    namespace: String,
    link: String,
    pub(crate) address: Ipv4Addr,
}

/// Why there can be no such network here, if there can't.
pub(crate) fn obstacle() -> Option<String> {
    let own = std::fs::metadata("/proc/self");
    if !own.is_ok_and(|own| own.uid() == 0) {
        return Some("network namespaces need root".to_owned());
    }
    match Command::new("ip").arg("-V").output() {
        Ok(_) => None,
        Err(error) => Some(format!("`ip` of iproute2 cannot be started: {error}")),
    }
}

impl Network {
    pub(crate) fn new() -> Self {
        let hub = format!("retouch-{}", std::process::id());
        let network = Self {
            hub: hub.clone(),
            hosts: Vec::new(),
        };
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add br0 type bridge"));
        ip(&format!("-n {hub} addr add {HUB}/24 dev br0"));
        ip(&format!("-n {hub} link set br0 up"));
        ip(&format!("-n {hub} link set lo up"));
        network
    }

    /// A host with an address of its own.
    pub(crate) fn add_host(&mut self) -> Host {
        let number = self.hosts.len() as u8 + 1;
        let host = Host {
            namespace: format!("{}-{number}", self.hub),
            link: format!("host{number}"),
            address: Ipv4Addr::new(10, 77, 0, number),
        };
        let Host {
            namespace,
            link,
            address,
        } = &host;
        let hub = &self.hub;
        ip(&format!("netns add {namespace}"));
        self.hosts.push(namespace.clone());
        ip(&format!(
            "-n {hub} link add {link} type veth peer name eth0 netns {namespace}"
        ));
        ip(&format!("-n {hub} link set {link} master br0 up"));
        ip(&format!("-n {namespace} addr add {address}/24 dev eth0"));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("-n {namespace} link set lo up"));
        host
    }

    /// From now on nothing goes to or from the host, and nobody is told.
    pub(crate) fn cut(&self, host: &Host) {
        ip(&format!("-n {} link set {} nomaster", self.hub, host.link));
    }

    /// Undoes [`Self::cut`].
    pub(crate) fn mend(&self, host: &Host) {
        ip(&format!(
            "-n {} link set {} master br0",
            self.hub, host.link
        ));
    }

    /// Runs `work` on a thread whose sockets, and whose threads' sockets, are on the bridge.
    pub(crate) fn on_hub<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = PathBuf::from("/run/netns").join(&self.hub);
        let namespace = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter its namespace");
            work()
        });
        thread.join().expect("no panic on the hub")
    }
}

impl Host {
    /// A command that runs on this host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().chain([&self.hub]) {
            // A test that failed half way has not made all of them.
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .output();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("`ip` was there before");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}
