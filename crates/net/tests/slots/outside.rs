//! The rest of the world: a namespace behind the test machine's only real link.

use crate::guest::tell_peers;
use crate::machine::shell;

/// The machine's address towards the world.
pub(crate) const HOST: &str = "203.0.113.1";

/// Somebody on the Internet.
pub(crate) const PUBLIC: &str = "203.0.113.2";

/// Somebody on the operator's network.
pub(crate) const PRIVATE: [&str; 3] = ["10.99.0.2", "192.168.77.2", "100.64.7.2"];

/// The metadata service of a cloud.
pub(crate) const METADATA: &str = "169.254.169.254";

/// The port at which all of them tell who is asking.
pub(crate) const PORT: u16 = 8080;

/// The name of the world's namespace.
pub(crate) const NETNS: &str = "world";

/// Builds the world.
pub(crate) fn build() {
    shell(&format!(
        "ip netns add {NETNS}
         ip link add uplink type veth peer name eth0 netns {NETNS}
         ip addr add {HOST}/24 dev uplink
         ip link set uplink up
         ip -n {NETNS} link set lo up
         ip -n {NETNS} link set eth0 up
         ip -n {NETNS} addr add {PUBLIC}/24 dev eth0
         ip -n {NETNS} route add 10.11.0.0/16 via {HOST}
         ip -n {NETNS} route add 10.12.0.0/16 via {HOST}
         ip route add default via {PUBLIC}"
    ));
    for addr in PRIVATE.iter().chain([&METADATA]) {
        shell(&format!("ip -n {NETNS} addr add {addr}/32 dev eth0; ip route add {addr}/32 via {PUBLIC}"));
    }
    tell_peers(NETNS, PORT);
}
