//! What Docker's own nftables rules (from 29, `--firewall-backend=nftables`) do to forwarded packets, from what `nft list table` prints.
//! Pure. Such a host has no chain for operators, and an accept in another table does not count against Docker's drops.

use std::{collections::BTreeSet, net::IpAddr};

/// Docker's table, of both families.
pub const TABLE: &str = "docker-bridges";

/// 0x40000000 is [`pod_steer_ebpf::FORWARD_MARK`].
const MARK: &str = "0x40000000";
/// With this option, chains of bridges accept packets with the mark, which they drop otherwise because the port is not published.
const ACCEPT_MARK: &str = "--bridge-accept-fwmark=0x40000000/0x40000000";
/// With this option, no rule drops packets for a container that come by another device than its bridge. Ports that are not published stay
/// closed.
const ALLOW_DIRECT: &str = "--allow-direct-routing";

/// The options that `dockerd` lacks, so that its rules drop packets to these addresses on these bridges.
pub fn lacks(listing: &str, targets: &BTreeSet<(&str, IpAddr)>) -> Vec<&'static str> {
    let drops_port = targets.iter().any(|(bridge, _)| {
        let chain = format!("filter-forward-in__{bridge}");
        // Its last rule has no condition.
        drops(rules(listing, &chain), |words| words.first() == Some(&"counter"))
    });
    let drops_direct = targets.iter().any(|(bridge, address)| {
        let (address, bridge) = (address.to_string(), format!("\"{bridge}\""));
        // A rule that lists several devices excepts those that the operator trusts.
        drops(rules(listing, "raw-PREROUTING"), |words| {
            let is = |parts: &[&str]| words.windows(parts.len()).any(|window| window == parts);
            is(&["daddr", &address]) && is(&["iifname", "!=", &bridge])
        })
    });
    [(drops_port, ACCEPT_MARK), (drops_direct, ALLOW_DIRECT)]
        .into_iter()
        .filter_map(|(drops, option)| drops.then_some(option))
        .collect()
}

/// The words of each rule of a chain.
fn rules<'a>(listing: &'a str, chain: &str) -> impl Iterator<Item = Vec<&'a str>> {
    let begin = format!("chain {chain} {{");
    let lines = listing.lines().map(str::trim).skip_while(move |line| *line != begin);
    lines.skip(1).take_while(|line| *line != "}").map(|line| line.split_whitespace().collect())
}

/// Whether a rule that this is true of drops packets with the mark before another one accepts them.
fn drops<'a>(rules: impl Iterator<Item = Vec<&'a str>>, matches: impl Fn(&[&str]) -> bool) -> bool {
    let accepts = |words: &[&str]| {
        let is_for_mark = words.contains(&"mark") && words.contains(&MARK);
        words.contains(&"accept") && (is_for_mark || matches(words))
    };
    let mut before = rules.take_while(|words| !accepts(words));
    before.any(|words| words.contains(&"drop") && matches(&words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker 29 makes it. `%raw` and `%port` stand for rules that its options add.
    const LISTING: &str = r#"table ip docker-bridges {
	map filter-forward-in-jumps {
		type ifname : verdict
		elements = { "docker0" : jump filter-forward-in__docker0 }
	}

	chain filter-FORWARD {
		type filter hook forward priority filter; policy accept;
		oifname vmap @filter-forward-in-jumps
		iifname vmap @filter-forward-out-jumps
	}

	chain raw-PREROUTING {
		type filter hook prerouting priority raw; policy accept;
		%raw
	}

	chain filter-forward-in__docker0 {
		ct state established,related counter packets 12 bytes 720 accept
		%port
		iifname "docker0" counter packets 0 bytes 0 accept comment "ICC"
		ip daddr 172.17.0.3 tcp dport 80 counter packets 0 bytes 0 accept
		counter packets 3 bytes 180 drop comment "UNPUBLISHED PORT DROP"
	}

	chain filter-forward-out__docker0 {
		counter packets 9 bytes 540 accept comment "OUTGOING"
	}
}"#;
    const DIRECT: &str =
        r#"ip daddr 172.17.0.2 iifname != "docker0" counter packets 1 bytes 60 drop comment "DROP DIRECT ACCESS""#;
    const OF_MARK: &str =
        r#"meta mark & 0x40000000 == 0x40000000 counter packets 0 bytes 0 accept comment "ALLOW FW MARK""#;

    fn lacking(raw: &str, port: &str, bridge: &str, address: &str) -> Vec<&'static str> {
        let listing = LISTING.replace("%raw", raw).replace("%port", port);
        lacks(&listing, &BTreeSet::from([(bridge, address.parse().unwrap())]))
    }

    #[test]
    fn what_docker_drops_names_the_option_that_lets_it_pass() {
        assert_eq!(lacking(DIRECT, "", "docker0", "172.17.0.2"), [ACCEPT_MARK, ALLOW_DIRECT]);
        assert_eq!(lacking(DIRECT, OF_MARK, "docker0", "172.17.0.2"), [ALLOW_DIRECT]);
        assert_eq!(lacking("", "", "docker0", "172.17.0.2"), [ACCEPT_MARK]);
        assert!(lacking("", OF_MARK, "docker0", "172.17.0.2").is_empty());
    }

    #[test]
    fn other_addresses_bridges_and_marks_do_not_count() {
        assert_eq!(lacking(DIRECT, OF_MARK, "docker0", "172.17.0.22"), [""; 0]);
        assert!(lacking(DIRECT, "", "podman1", "172.17.0.2").is_empty(), "it is not one of Docker's");
        let other = OF_MARK.replace(MARK, "0x00000001");
        assert_eq!(lacking("", &other, "docker0", "172.17.0.2"), [ACCEPT_MARK]);
        assert!(lacks("", &BTreeSet::from([("docker0", "172.17.0.2".parse().unwrap())])).is_empty());
    }

    #[test]
    fn an_operator_s_exception_counts() {
        let trusted = DIRECT.replace("\"docker0\"", "{ \"docker0\", \"eth0\" }");
        assert!(lacking(&trusted, OF_MARK, "docker0", "172.17.0.2").is_empty());
        let first = format!("{OF_MARK}\n\t\t{DIRECT}");
        assert!(lacking(&first, OF_MARK, "docker0", "172.17.0.2").is_empty(), "a rule for the mark before the drop");
        // The gateway mode `nat-unprotected` leaves all ports open.
        assert!(lacking("", "counter packets 0 bytes 0 accept", "docker0", "172.17.0.2").is_empty());
    }

    #[test]
    fn the_mark_is_that_of_the_kernel_programs() {
        assert_eq!(MARK, format!("{:#x}", pod_steer_ebpf::FORWARD_MARK));
        assert!(ACCEPT_MARK.ends_with(&format!("={MARK}/{MARK}")));
    }
}
