//! Firewalls of the machine that drop what guests send.
//!
//! Each base chain at the forward hook has its say, and a drop is final: that our table accepts a packet does not keep
//! another one from dropping it. Docker and ufw set the policy of iptables' `FORWARD` to drop, and then guests reach
//! nothing beyond their own name server.

use std::collections::HashSet;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use super::Deficiency;
use crate::firewall::TABLE;

/// Begins the name of every link between the host and a slot.
const LINKS: &str = "wrenn-";
/// The chain that Docker leaves to the machine's owner, and never flushes.
const DOCKER_CHAIN: &str = "DOCKER-USER";

/// Whether the machine's own firewall lets guests through. Where `nft` cannot tell, nothing is reported; rules of the old
/// `iptables-legacy` are invisible to it.
///
/// # Errors
/// Where a chain drops what it does not know, and no rule of it lets the slots' links through.
pub fn check_forwarding() -> Result<(), Deficiency> {
    let listing = Command::new("nft").args(["-j", "list", "ruleset"]).stdin(Stdio::null()).output();
    let Ok(listing) = listing else { return Ok(()) };
    judge(&listing.stdout)
}

/// What `nft -j list ruleset` prints, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    expr: Vec<Value>,
}

#[derive(Debug, Default)]
struct Ruleset {
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

fn judge(listing: &[u8]) -> Result<(), Deficiency> {
    let Ok(listing) = serde_json::from_slice::<Listing>(listing) else { return Ok(()) };
    let mut ruleset = Ruleset::default();
    for entry in listing.nftables {
        ruleset.chains.extend(entry.chain);
        ruleset.rules.extend(entry.rule);
    }
    let blocking: Vec<_> = ruleset.chains.iter().filter(|chain| ruleset.blocks(chain)).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = blocking.iter().map(|chain| chain.full_name()).collect();
    let cures: Vec<_> = blocking.iter().map(|chain| ruleset.cure(chain)).collect();
    Err(Deficiency {
        what: format!(
            "the machine's firewall drops forwarded packets (policy drop of {}): guests do not reach the internet",
            names.join(", ")
        ),
        mend: cures.join(" && ").into(),
    })
}

impl Chain {
    fn full_name(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// Whether it is one of iptables, whose own program must write its rules.
    fn is_iptables(&self) -> bool {
        (self.family.as_str(), self.table.as_str(), self.name.as_str()) == ("ip", "filter", "FORWARD")
    }
}

impl Ruleset {
    /// Guests have IPv4 only.
    fn blocks(&self, chain: &Chain) -> bool {
        matches!(chain.family.as_str(), "ip" | "inet")
            && chain.table != TABLE
            && chain.hook.as_deref() == Some("forward")
            && chain.policy.as_deref() == Some("drop")
            && !(self.accepts(chain, "iifname") && self.accepts(chain, "oifname"))
    }

    /// Whether the chain, or one that it leads to, accepts packets whose link of that kind is a slot's.
    fn accepts(&self, chain: &Chain, kind: &str) -> bool {
        let (mut seen, mut open) = (HashSet::new(), vec![chain.name.as_str()]);
        while let Some(name) = open.pop() {
            if !seen.insert(name) {
                continue;
            }
            for rule in self.rules_of(chain, name) {
                if rule.accepts(kind) {
                    return true;
                }
                open.extend(rule.targets());
            }
        }
        false
    }

    fn rules_of<'a>(&'a self, chain: &'a Chain, name: &'a str) -> impl Iterator<Item = &'a Rule> {
        let of = move |rule: &&Rule| {
            rule.family == chain.family && rule.table == chain.table && rule.chain == name
        };
        self.rules.iter().filter(of)
    }

    fn cure(&self, chain: &Chain) -> String {
        if !chain.is_iptables() {
            let place = format!("insert rule {}", chain.full_name());
            return format!(
                "nft '{place} iifname \"{LINKS}*\" accept' && \
                 nft '{place} oifname \"{LINKS}*\" ct state established,related accept'"
            );
        }
        let of_docker = |other: &&Chain| {
            (other.family == chain.family && other.table == chain.table) && other.name == DOCKER_CHAIN
        };
        let place = self.chains.iter().find(of_docker).unwrap_or(chain).name.as_str();
        format!(
            "iptables -I {place} -i {LINKS}+ -j ACCEPT && \
             iptables -I {place} -o {LINKS}+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )
    }
}

impl Rule {
    fn accepts(&self, kind: &str) -> bool {
        self.expr.iter().any(|part| part.get("accept").is_some())
            && self.expr.iter().any(|part| names_links(&part["match"], kind))
    }

    fn targets(&self) -> impl Iterator<Item = &str> {
        self.expr.iter().filter_map(|part| {
            let verdict = part.get("jump").or_else(|| part.get("goto"))?;
            verdict["target"].as_str()
        })
    }
}

/// Whether a rule's condition is that the link of that kind is a slot's.
fn names_links(condition: &Value, kind: &str) -> bool {
    condition["op"] == "=="
        && condition["left"]["meta"]["key"] == kind
        && condition["right"].as_str().is_some_and(|name| name == format!("{LINKS}*"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::machine::{on_own_machine, shell};

    fn base(family: &str, table: &str, name: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "handle": 1, "type": "filter",
            "hook": "forward", "prio": 0, "policy": policy}})
    }

    fn plain(table: &str, name: &str) -> Value {
        json!({"chain": {"family": "ip", "table": table, "name": name, "handle": 2}})
    }

    fn rule(chain: &str, expr: &Value) -> Value {
        json!({"rule": {"family": "ip", "table": "filter", "chain": chain, "handle": 3, "expr": expr}})
    }

    fn accept(chain: &str, kind: &str) -> Value {
        let links = json!({"op": "==", "left": {"meta": {"key": kind}}, "right": "wrenn-*"});
        let counter = json!({"counter": {"packets": 0, "bytes": 0}});
        rule(
            chain,
            &json!([{"match": links}, {"xt": {"type": "match", "name": "conntrack"}}, counter, {"accept": null}]),
        )
    }

    fn jump(chain: &str, to: &str) -> Value {
        rule(chain, &json!([{"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": to}}]))
    }

    fn judge_all(entries: &[Value]) -> Result<(), Deficiency> {
        let head = json!({"metainfo": {"version": "1.0.6", "json_schema_version": 1}});
        let all: Vec<_> = std::iter::once(&head).chain(entries).collect();
        judge(json!({"nftables": all}).to_string().as_bytes())
    }

    #[test]
    fn docker_is_told_of_with_a_cure_in_its_owners_chain() {
        let lack = judge_all(&[
            base("ip", "filter", "FORWARD", "drop"),
            plain("filter", "DOCKER-USER"),
            jump("FORWARD", "DOCKER-USER"),
        ]);
        let lack = lack.unwrap_err();
        assert!(lack.what.contains("policy drop of ip filter FORWARD"), "{}", lack.what);
        assert!(lack.mend.starts_with("iptables -I DOCKER-USER -i wrenn-+ -j ACCEPT && "), "{}", lack.mend);
        assert!(lack.mend.contains("-I DOCKER-USER -o wrenn-+ "), "{}", lack.mend);
    }

    #[test]
    fn iptables_without_docker_gets_its_rules_into_forward_itself() {
        let lack = judge_all(&[base("ip", "filter", "FORWARD", "drop")]).unwrap_err();
        assert!(lack.mend.starts_with("iptables -I FORWARD -i wrenn-+ -j ACCEPT"), "{}", lack.mend);
    }

    #[test]
    fn rules_for_both_directions_end_the_warning_wherever_the_chain_leads() {
        let docker = [
            base("ip", "filter", "FORWARD", "drop"),
            plain("filter", "DOCKER-USER"),
            jump("FORWARD", "DOCKER-USER"),
            jump("DOCKER-USER", "FORWARD"),
        ];
        let with = |more: &[Value]| judge_all(&[&docker[..], more].concat());
        assert!(with(&[accept("DOCKER-USER", "iifname")]).is_err());
        assert!(with(&[accept("elsewhere", "iifname"), accept("elsewhere", "oifname")]).is_err());
        assert_eq!(with(&[accept("DOCKER-USER", "iifname"), accept("FORWARD", "oifname")]), Ok(()));
    }

    #[test]
    fn chains_that_accept_are_of_ipv6_or_are_ours_are_no_matter() {
        let harmless = [
            base("ip", "filter", "FORWARD", "accept"),
            base("ip6", "filter", "FORWARD", "drop"),
            base("inet", "wrenn", "forward", "drop"),
            plain("filter", "anything"),
        ];
        assert_eq!(judge_all(&harmless), Ok(()));
    }

    #[test]
    fn what_is_no_listing_says_nothing() {
        for listing in ["", "table ip filter {", "[]", "{}", r#"{"nftables": [{"chain": 1}]}"#] {
            assert_eq!(judge(listing.as_bytes()), Ok(()), "{listing}");
        }
    }

    #[test]
    fn a_real_firewall_is_seen_and_its_cure_cures() {
        on_own_machine(|| async {
            assert_eq!(check_forwarding(), Ok(()));
            shell(
                "nft 'table inet own { chain forwarded { type filter hook forward priority 0; policy drop; }; }'",
            );
            let lack = check_forwarding().unwrap_err();
            assert!(lack.what.contains("inet own forwarded"), "{}", lack.what);
            shell(&lack.mend);
            assert_eq!(check_forwarding(), Ok(()));
            // As iptables makes it on nf_tables.
            shell(
                "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
            );
            assert!(check_forwarding().unwrap_err().mend.starts_with("iptables -I FORWARD "));
            shell("nft add rule 'ip filter FORWARD iifname \"wrenn-*\" counter accept'");
            shell("nft add rule 'ip filter FORWARD oifname \"wrenn-*\" ct state established counter accept'");
            assert_eq!(check_forwarding(), Ok(()));
        });
    }
}
