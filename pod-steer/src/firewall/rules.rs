//! Which rules are missing or in the wrong place, from what `iptables -S CHAIN` prints. Pure.

/// The chain in which Docker never changes a rule: what operators add there comes before its own.
pub const USERS: &str = "DOCKER-USER";
/// The chain of the filter table that every forwarded packet passes.
pub const FORWARD: &str = "FORWARD";
/// The chain of the raw table that every packet passes.
pub const RAW: &str = "PREROUTING";

/// Our rule, without its chain. 0x40000000 is [`pod_steer_ebpf::FORWARD_MARK`].
const RULE: [&str; 10] =
    ["-m", "mark", "--mark", "0x40000000/0x40000000", "-m", "comment", "--comment", "pod-steer", "-j", "ACCEPT"];
const MARK: &str = RULE[3];

/// A change of a chain: the arguments of `iptables`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step(Vec<String>);

impl Step {
    /// The arguments.
    pub fn arguments(&self) -> &[String] {
        &self.0
    }

    fn of(begin: &[&str]) -> Self {
        Self(begin.iter().chain(&RULE).map(|&word| word.to_owned()).collect())
    }

    /// Removes a rule as it is listed.
    fn delete(rule: &str) -> Self {
        let words = rule.split_whitespace().skip(1).map(|word| word.trim_matches('"').to_owned());
        Self(["-D".to_owned()].into_iter().chain(words).collect())
    }

    fn append(chain: &str) -> Self {
        Self::of(&["-A", chain])
    }

    fn insert(chain: &str, number: usize) -> Self {
        Self::of(&["-I", chain, &number.to_string()])
    }
}

/// The rules of a chain in a listing.
fn rules(listing: &str) -> impl DoubleEndedIterator<Item = &str> {
    listing.lines().filter(|line| line.starts_with("-A "))
}

/// Programs print the parts of a rule in orders of their own.
fn is_ours(rule: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().map(|word| word.trim_matches('"')).collect();
    words.windows(2).any(|pair| pair == ["--comment", "pod-steer"]) && words.contains(&MARK)
}

/// Removes every rule of ours in a listing.
pub fn without(listing: &str) -> Vec<Step> {
    rules(listing).filter(|rule| is_ours(rule)).map(Step::delete).collect()
}

/// In [`USERS`] our rule is the last one, so that the operator's drops come first; but for an unconditional RETURN, by which the chain ends
/// in Docker before 28.2. No packet passes the rules behind that, such as one that the operator has appended.
pub fn in_chain_of_users(listing: &str) -> Vec<Step> {
    let all: Vec<&str> = rules(listing).collect();
    let ends = |rule: &&str| rule.split_whitespace().skip(2).eq(["-j", "RETURN"]);
    let (passed, rest) = all.split_at(all.iter().position(ends).unwrap_or(all.len()));
    let mut steps = without(listing);
    if steps.len() == 1 && passed.last().is_some_and(|last| is_ours(last)) {
        return Vec::new();
    }
    let others = passed.iter().filter(|rule| !is_ours(rule)).count();
    steps.push(if rest.is_empty() { Step::append(USERS) } else { Step::insert(USERS, others + 1) });
    steps
}

/// In the raw table Docker since 28 drops packets for a container that come by another device than its bridge. Our rule stands before the
/// first of those, so an operator's drops before it come first, and is not needed without them.
pub fn in_raw(listing: &str) -> Vec<Step> {
    let of_docker =
        |rule: &str| rule.starts_with("-A PREROUTING -d ") && rule.contains(" ! -i ") && rule.ends_with("-j DROP");
    let all: Vec<&str> = rules(listing).collect();
    let others: Vec<&str> = all.iter().copied().filter(|rule| !is_ours(rule)).collect();
    let wanted = others.iter().position(|rule| of_docker(rule));
    let mut steps = without(listing);
    let is_there = wanted.is_some_and(|place| steps.len() == 1 && all.get(place).is_some_and(|rule| is_ours(rule)));
    if is_there || wanted.is_none() && steps.is_empty() {
        return Vec::new();
    }
    steps.extend(wanted.map(|place| Step::insert(RAW, place + 1)));
    steps
}

/// Whether the FORWARD chain drops what no rule accepts, and has no rule for the mark.
pub fn drops_marked(listing: &str) -> bool {
    listing.lines().any(|line| line == "-P FORWARD DROP") && !listing.contains(MARK)
}

/// Whether that chain does so although there is [`USERS`]: it does not lead there, as after `iptables -F`.
pub fn drops_before_users(listing: &str) -> bool {
    let leads = |rule: &str| rule.split_whitespace().skip_while(|word| *word != "-j").nth(1) == Some(USERS);
    drops_marked(listing) && !rules(listing).any(leads)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-A DOCKER-USER -m mark --mark 0x40000000/0x40000000 -m comment --comment pod-steer -j ACCEPT";
    const OTHERWISE: &str =
        "-A DOCKER-USER -m comment --comment \"pod-steer\" -m mark --mark 0x40000000/0x40000000 -j ACCEPT";
    const DROP: &str = "-A DOCKER-USER -s 192.0.2.0/24 -j DROP";
    const RETURN: &str = "-A DOCKER-USER -j RETURN";

    fn shown(steps: &[Step]) -> Vec<String> {
        let short = |step: &Step| match step.arguments() {
            [what, chain, ..] if what != "-I" => format!("{what} {chain}"),
            more => more[..3].join(" "),
        };
        steps.iter().map(short).collect()
    }

    fn users(rules: &[&str]) -> Vec<String> {
        let listing = ["-N DOCKER-USER"].iter().chain(rules).copied().collect::<Vec<_>>().join("\n");
        shown(&in_chain_of_users(&listing))
    }

    #[test]
    fn our_rule_is_the_last_one_of_the_operator_s_chain() {
        assert_eq!(users(&[]), ["-A DOCKER-USER"]);
        assert_eq!(users(&[DROP]), ["-A DOCKER-USER"]);
        assert_eq!(users(&[DROP, RETURN]), ["-I DOCKER-USER 2"]);
        for right in [&[OURS][..], &[DROP, OURS], &[DROP, OURS, RETURN], &[OTHERWISE, RETURN]] {
            assert!(users(right).is_empty(), "{right:?}");
        }
        assert_eq!(
            users(&[OURS, DROP]),
            ["-D DOCKER-USER", "-A DOCKER-USER"],
            "a drop that was added since comes first"
        );
        assert_eq!(users(&[OURS, DROP, OURS, RETURN]), ["-D DOCKER-USER", "-D DOCKER-USER", "-I DOCKER-USER 2"]);
        // What stands behind the RETURN is passed by no packet.
        for right in [&[OURS, RETURN, DROP][..], &[DROP, OURS, RETURN, DROP, RETURN]] {
            assert!(users(right).is_empty(), "{right:?}");
        }
        assert_eq!(users(&[RETURN, DROP, OURS]), ["-D DOCKER-USER", "-I DOCKER-USER 1"]);
        assert_eq!(users(&[DROP, RETURN, DROP]), ["-I DOCKER-USER 2"]);
        let of_other = OURS.replace("pod-steer", "other");
        assert_eq!(users(&[&of_other]), ["-A DOCKER-USER"]);
        assert_eq!(users(&["-A DOCKER-USER -i eth0 -j RETURN"]), ["-A DOCKER-USER"], "that one has a condition");
    }

    #[test]
    fn a_rule_is_removed_as_it_is_listed() {
        let words = OTHERWISE.replace('"', "").replacen("-A", "-D", 1);
        assert_eq!(without(OTHERWISE)[0].arguments().join(" "), words);
        assert!(without(DROP).is_empty());
    }

    #[test]
    fn our_rule_stands_before_docker_s_drops_in_the_raw_table() {
        let raw = |rules: &[&str]| {
            let listing = ["-P PREROUTING ACCEPT"].iter().chain(rules).copied().collect::<Vec<_>>().join("\n");
            shown(&in_raw(&listing))
        };
        let ours = OURS.replace("DOCKER-USER", "PREROUTING");
        let docker = "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP";
        let operator = "-A PREROUTING -s 203.0.113.0/24 -j DROP";
        assert!(raw(&[]).is_empty() && raw(&[operator]).is_empty(), "an operator's drop alone needs no rule");
        assert!(raw(&[&ours, docker]).is_empty() && raw(&[operator, &ours, docker]).is_empty());
        assert_eq!(raw(&[docker]), ["-I PREROUTING 1"]);
        assert_eq!(raw(&[operator, docker]), ["-I PREROUTING 2"]);
        assert_eq!(raw(&[docker, &ours]), ["-D PREROUTING", "-I PREROUTING 1"]);
        assert_eq!(raw(&[&ours, operator, docker]), ["-D PREROUTING", "-I PREROUTING 2"]);
        assert_eq!(raw(&[&ours]), ["-D PREROUTING"], "it is no longer needed");
    }

    #[test]
    fn the_mark_is_that_of_the_kernel_programs() {
        assert_eq!(MARK, format!("{0:#x}/{0:#x}", pod_steer_ebpf::FORWARD_MARK));
        assert!(drops_marked("-P FORWARD DROP\n-A FORWARD -j OTHER") && !drops_marked("-P FORWARD ACCEPT"));
        assert!(!drops_marked("-P FORWARD DROP\n-A FORWARD -m mark --mark 0x40000000/0x40000000 -j ACCEPT"));
    }

    #[test]
    fn a_flushed_forward_chain_does_not_lead_to_our_rule() {
        assert!(drops_before_users("-P FORWARD DROP") && drops_before_users("-P FORWARD DROP\n-A FORWARD -j OTHER"));
        assert!(!drops_before_users("-P FORWARD ACCEPT"));
        assert!(!drops_before_users("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD"));
    }
}
