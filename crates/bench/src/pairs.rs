//! Two things measured in turn.

use std::time::Duration;

use crate::stats::Samples;

/// Samples of the one and of the other.
pub(crate) type Pair = (Samples, Samples);

/// Times of both, `count` each, after one pair to warm up. Every second pair begins with the other.
pub(crate) async fn run(
    count: usize,
    this: impl AsyncFn() -> anyhow::Result<Duration>,
    bare: impl AsyncFn() -> anyhow::Result<Duration>,
) -> anyhow::Result<Pair> {
    let (mut these, mut bares) = (Samples::default(), Samples::default());
    for pair in 0..=count {
        let mut took = [Duration::ZERO; 2];
        for turn in [pair % 2, 1 - pair % 2] {
            took[turn] = if turn == 0 { this().await? } else { bare().await? };
        }
        if pair > 0 {
            these.time(took[0]);
            bares.time(took[1]);
        }
    }
    Ok((these, bares))
}
