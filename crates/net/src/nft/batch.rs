//! A transaction: tables, chains and rules that take effect together or not at all.

use super::rule::Rule;
use super::wire::Writer;

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// Which packets a table sees; the numbers are the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    /// Both of the following.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

/// Where a chain is attached; the numbers are the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To the machine itself.
    Input = 1,
    /// Through the machine.
    Forward = 2,
    /// From the machine itself.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// What becomes of a packet that no rule decided; the numbers are the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Policy {
    /// It is dropped.
    Drop = 0,
    /// It goes on.
    Accept = 1,
}

/// A base chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    /// Its name in its table.
    pub(crate) name: &'static str,
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// Where it is attached.
    pub(crate) hook: Hook,
    /// Its place among the chains of that hook.
    pub(crate) priority: i32,
    /// What becomes of undecided packets.
    pub(crate) policy: Policy,
}

/// A question that is answered by success if the table exists, as bytes and the number of the message.
pub(super) fn table_query(family: Family, table: &str) -> (Writer, u32) {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
    writer.message(kind, NLM_F_REQUEST | NLM_F_ACK, 1, family as u8, 0, |body| body.text(1, table));
    (writer, 1)
}

/// A transaction being written, for the table `name` of one or more families.
#[derive(Debug)]
pub(crate) struct Batch {
    writer: Writer,
    table: &'static str,
    sequence: u32,
}

impl Batch {
    /// A transaction over the tables called `table`.
    pub(crate) fn new(table: &'static str) -> Self {
        let mut batch = Self { writer: Writer::default(), table, sequence: 0 };
        batch.border(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Makes the table, which must not exist.
    pub(crate) fn new_table(&mut self, family: Family) {
        self.table_message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, family);
    }

    /// Makes the table empty, whether it exists or not.
    ///
    /// The kernel disposes of the old one later, and closing the socket waits for that, some ten milliseconds;
    /// use [`Self::new_table`] where somebody waits.
    pub(crate) fn replace_table(&mut self, family: Family) {
        // Deleting what is not there fails, hence the first line.
        self.table_message(NFT_MSG_NEWTABLE, NLM_F_CREATE, family);
        self.table_message(NFT_MSG_DELTABLE, 0, family);
        self.new_table(family);
    }

    /// Adds a base chain with its rules, in order.
    pub(crate) fn chain(&mut self, family: Family, chain: Chain, rules: impl IntoIterator<Item = Rule>) {
        let table = self.table;
        self.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, |writer| {
            writer.text(1, table);
            writer.text(3, chain.name);
            writer.nested(4, |hook| {
                hook.number(1, chain.hook as u32);
                hook.number(2, chain.priority.cast_unsigned());
            });
            writer.number(5, chain.policy as u32);
            writer.text(7, chain.kind);
        });
        for rule in rules {
            self.rule(family, chain.name, &rule);
        }
    }

    /// Ends the transaction: its bytes, and the number of the message whose acknowledgement means success.
    pub(super) fn finish(mut self) -> (Writer, u32) {
        self.border(NFNL_MSG_BATCH_END);
        (self.writer, self.sequence)
    }

    fn rule(&mut self, family: Family, chain: &str, rule: &Rule) {
        let table = self.table;
        self.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, |writer| {
            writer.text(1, table);
            writer.text(2, chain);
            writer.nested_bytes(NFTA_RULE_EXPRESSIONS, rule.expressions());
        });
    }

    fn table_message(&mut self, kind: u16, flags: u16, family: Family) {
        let table = self.table;
        self.push(kind, flags, family, |writer| writer.text(1, table));
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, body: impl FnOnce(&mut Writer)) {
        self.sequence += 1;
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.writer.message(kind, flags, self.sequence, family as u8, 0, body);
    }

    fn border(&mut self, kind: u16) {
        self.writer.message(kind, NLM_F_REQUEST, self.sequence, 0, NFNL_SUBSYS_NFTABLES, |_| {});
    }
}
