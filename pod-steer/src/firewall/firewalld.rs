//! What firewalld's rules do to forwarded packets, from what `nft list table` prints. Pure. firewalld accepts packets whose destination was
//! translated, as those of `docker run -p` are; forwarded ones are not, so a zone or a policy has to accept them. An accept in another table
//! does not count against its rejects.

/// firewalld's table, of both families.
pub const TABLE: &str = "firewalld";

/// The chain that every forwarded packet passes.
const BASE: &str = "filter_FORWARD";
/// Chains that lead to one another: firewalld has five steps at most.
const DEPTH_MAX: usize = 16;
/// 0x40000000 is [`pod_steer_ebpf::FORWARD_MARK`].
const MARK: &str = "0x40000000";

/// What a chain does to a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Refused,
    /// The rule after the one that led to the chain comes next.
    Returned,
}

/// Whether packets of new connections that come by the device `from`, and go to the device `to`, are rejected or dropped. A rule with a
/// condition that is not known is passed over.
pub fn refuses(listing: &str, from: &str, to: &str) -> bool {
    walk(listing, BASE, from, to, DEPTH_MAX) == End::Refused
}

fn walk(listing: &str, chain: &str, from: &str, to: &str, depth: usize) -> End {
    let begin = format!("chain {chain} {{");
    let lines = listing.lines().map(str::trim).skip_while(|line| *line != begin);
    for line in lines.skip(1).take_while(|line| *line != "}") {
        let Some((conditions, verdict)) = split(line) else { continue };
        if !matches(conditions, from, to) {
            continue;
        }
        let (word, target) = verdict.split_once(' ').unwrap_or((verdict, ""));
        let end = match word {
            "accept" => End::Accepted,
            "drop" | "reject" => End::Refused,
            "return" => return End::Returned,
            _ if depth == 0 => End::Returned,
            "goto" => return walk(listing, target, from, to, depth - 1),
            _ => walk(listing, target, from, to, depth - 1),
        };
        if end != End::Returned {
            return end;
        }
    }
    End::Returned
}

/// The conditions of a rule, and its verdict with what follows; `None` if it has no verdict.
fn split(line: &str) -> Option<(&str, &str)> {
    let is_verdict = |word: &str| matches!(word, "accept" | "drop" | "reject" | "return" | "goto" | "jump");
    let word = line.split(' ').find(|word| is_verdict(word))?;
    let at = word.as_ptr() as usize - line.as_ptr() as usize;
    Some(line.split_at(at))
}

/// Whether the packet meets all conditions of a rule.
fn matches(conditions: &str, from: &str, to: &str) -> bool {
    let mut words = conditions.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let is_met = match word {
            "iifname" => has(&mut words, from),
            "oifname" => has(&mut words, to),
            "ct" if words.next() == Some("state") => has(&mut words, "new"),
            "meta" | "mark" => {
                let is_part = |word: &&str| matches!(*word, "mark" | "&" | "==") || word.starts_with("0x");
                let mut of_mark = false;
                while let Some(part) = words.next_if(is_part) {
                    of_mark |= part == MARK;
                }
                of_mark
            }
            // What is counted, and what is written to the log, is not asked.
            "counter" | "packets" | "bytes" => true,
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => true,
            _ => false,
        };
        if !is_met {
            return false;
        }
    }
    true
}

/// Whether the value of a condition is this name: `"eth0"`, `{ "eth0", "eth1" }`, `!= "eth0"`, or `"eth*"`.
fn has<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, name: &str) -> bool {
    let is_unlike = words.next_if_eq(&"!=").is_some();
    let is = |word: &str| {
        let word = word.trim_matches([',', '"']);
        word.strip_suffix('*').map_or(word == name, |begin| name.starts_with(begin))
    };
    let mut found = false;
    if words.next_if_eq(&"{").is_some() {
        // All are taken, whichever it is.
        words.by_ref().take_while(|word| *word != "}").for_each(|word| found |= is(word));
    } else {
        found = words.next().is_some_and(is);
    }
    found != is_unlike
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of firewalld 1.3 with a zone for Docker's bridge, as Docker makes it. `%policy` stands for its policy.
    const LISTING: &str = r#"table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
		jump filter_FORWARD_ZONES
		reject with icmpx admin-prohibited
	}

	chain filter_FORWARD_POLICIES_pre {
		%policy
	}

	chain filter_FORWARD_ZONES {
		iifname "docker0" goto filter_FWD_docker
		iifname { "eth7", "tun*" } goto filter_FWD_trusted
		goto filter_FWD_public
	}

	chain filter_FWD_trusted {
		accept
	}

	chain filter_FWD_public {
		jump filter_FORWARD_POLICIES_pre
		jump filter_FWD_public_allow
		reject with icmpx admin-prohibited
	}

	chain filter_FWD_public_allow {
		oifname "eth9" accept
	}

	chain filter_FWD_docker {
		jump filter_FORWARD_POLICIES_pre
		accept
	}

	chain filter_FWD_policy_docker-forwarding {
		jump filter_FWD_public_allow
		accept
	}
}"#;

    #[test]
    fn a_packet_needs_a_zone_or_a_policy_that_accepts_it() {
        let refused = |policy: &str, from: &str| refuses(&LISTING.replace("%policy", policy), from, "docker0");
        assert!(refused("", "eth0") && refused("", ""));
        assert!(!refused("", "docker0"), "from another container");
        assert!(!refused("", "eth7") && !refused("", "tun3"));
        let docker = r#"oifname "docker0" jump filter_FWD_policy_docker-forwarding"#;
        assert!(!refused(docker, "eth0"));
        assert!(refused(&docker.replace("docker0", "docker1"), "eth0"), "of another bridge");
        assert!(!refused("meta mark & 0x40000000 == 0x40000000 accept", "eth0"));
        assert!(refused("meta mark & 0x20000000 == 0x20000000 accept", "eth0"));
        assert!(!refused("ct state { new, untracked } counter packets 3 bytes 180 accept", "eth0"));
    }

    /// From firewalld 2.0 zones have no chain that leads to them.
    #[test]
    fn zones_of_firewalld_2() {
        let listing = r#"table inet firewalld {
	chain filter_FORWARD {
		jump filter_FORWARD_POLICIES
		reject with icmpx admin-prohibited
	}

	chain filter_FORWARD_POLICIES {
		iifname "eth0" oifname "docker0" jump filter_FWD_policy
		iifname "eth0" jump filter_FWD_public
		iifname "eth0" reject with icmpx admin-prohibited
		jump filter_FWD_public
		reject with icmpx admin-prohibited
	}

	chain filter_FWD_public {
	}

	chain filter_FWD_policy {
		accept
	}
}"#;
        assert!(!refuses(listing, "eth0", "docker0"));
        assert!(refuses(listing, "eth1", "docker0") && refuses(listing, "eth0", "docker1"));
    }

    #[test]
    fn a_table_that_leads_in_circles_ends() {
        assert!(!refuses("chain filter_FORWARD {\njump filter_FORWARD\n}", "eth0", "docker0"));
        assert!(!refuses("", "eth0", "docker0"), "there is none");
    }
}
