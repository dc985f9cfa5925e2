//! Samples and what is told of them.

use std::time::Duration;

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// Measurements of one thing, in any unit in which less is better.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a duration, in milliseconds.
    pub(crate) fn time(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    /// Adds a plain number.
    pub(crate) fn number(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that `percent` of the samples do not exceed (nearest rank); 0 without samples.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Median and 99th percentile.
    pub(crate) fn summary(&self) -> Summary {
        Summary { p50: self.percentile(50), p99: self.percentile(99), count: self.len() }
    }

    /// As [`summary`](Self::summary), of the speeds in MiB/s at which `bytes` were moved in these times: 99 % of the
    /// transfers were at least as fast as the second.
    pub(crate) fn speed(&self, bytes: u64) -> Summary {
        #[expect(clippy::cast_precision_loss, reason = "a size of a few hundred MiB")]
        let speed = |ms: f64| bytes as f64 / MIB / (ms / 1e3);
        let times = self.summary();
        Summary { p50: speed(times.p50), p99: speed(times.p99), count: times.count }
    }
}

/// Two percentiles of some samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// Half of the samples are as good or better.
    pub(crate) p50: f64,
    /// 99 % of the samples are as good or better.
    pub(crate) p99: f64,
    /// How many samples there were.
    pub(crate) count: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: impl IntoIterator<Item = u32>) -> Samples {
        Samples(values.into_iter().map(f64::from).collect())
    }

    #[test]
    fn percentiles_are_samples_whatever_their_order() {
        let hundred = samples((1..=100).rev());
        assert_eq!((hundred.percentile(50), hundred.percentile(99)), (50.0, 99.0));
        let three = samples([9, 1, 5]);
        assert_eq!((three.percentile(50), three.percentile(99)), (5.0, 9.0));
        assert_eq!(Samples::default().percentile(50), 0.0);
    }

    #[test]
    fn the_slow_end_of_times_is_the_slow_end_of_speeds() {
        let speed = samples([1000, 2000]).speed(256 << 20);
        assert_eq!((speed.p50, speed.p99), (256.0, 128.0));
    }
}
