//! Which blocks the layers put over the base, and from where they come.

/// Where the blocks of an [`Extent`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// They are zeros.
    Zero,
    /// They lie one after another in a layer.
    Layer {
        /// Index of the layer, the oldest being 0.
        layer: usize,
        /// Offset of the first of them in the layer's file, in bytes.
        offset: u64,
    },
}

impl Source {
    /// The source of the block that is `blocks` further on.
    pub(crate) fn skip(self, blocks: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Layer { layer, offset } => Self::Layer { layer, offset: offset + blocks * crate::BLOCK },
        }
    }
}

/// A range of blocks with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub block: u64,
    /// Number of blocks, at least 1.
    pub count: u64,
    /// Where they come from.
    pub source: Source,
}

impl Extent {
    /// The block behind the last one.
    pub fn end(&self) -> u64 {
        self.block + self.count
    }

    /// The part of the extent from `block` up to `end`, both within it.
    pub(crate) fn part(&self, block: u64, end: u64) -> Self {
        Self { block, count: end - block, source: self.source.skip(block - self.block) }
    }
}

/// Appends `extent`, as part of the last one where it continues that.
pub(crate) fn push(map: &mut Vec<Extent>, extent: Extent) {
    match map.last_mut() {
        Some(last) if last.end() == extent.block && last.source.skip(last.count) == extent.source => {
            last.count += extent.count;
        }
        _ => map.push(extent),
    }
}

/// Lays `upper` over `lower`. Both are ascending and disjoint, and so is the result.
pub(crate) fn overlay(lower: &[Extent], upper: &[Extent]) -> Vec<Extent> {
    let mut map = Vec::with_capacity(lower.len() + upper.len());
    let mut below = Below { rest: lower, from: 0 };
    for over in upper {
        below.up_to(over.block, &mut map);
        below.from = over.end();
        push(&mut map, *over);
    }
    below.up_to(u64::MAX, &mut map);
    map
}

/// What of the lower map is not yet laid out.
struct Below<'a> {
    rest: &'a [Extent],
    /// Blocks in front of this one are covered.
    from: u64,
}

impl Below<'_> {
    fn up_to(&mut self, end: u64, map: &mut Vec<Extent>) {
        while let Some(extent) = self.rest.first() {
            let (start, stop) = (extent.block.max(self.from), extent.end().min(end));
            if start < stop {
                push(map, extent.part(start, stop));
            }
            if extent.end() > end {
                return;
            }
            self.rest = &self.rest[1..];
        }
    }
}

/// Index of the first extent that ends behind `block`.
pub(crate) fn find(map: &[Extent], block: u64) -> usize {
    map.partition_point(|extent| extent.end() <= block)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BLOCK;

    fn layer_of(layer: usize, ranges: &[(u64, u64, bool)]) -> Vec<Extent> {
        let (mut map, mut block, mut offset) = (Vec::new(), 0, 0);
        for &(gap, count, zero) in ranges {
            block += gap;
            let source = if zero { Source::Zero } else { Source::Layer { layer, offset } };
            push(&mut map, Extent { block, count, source });
            block += count;
            offset += if zero { 0 } else { count * BLOCK };
        }
        map
    }

    fn flat(map: &[Extent]) -> Vec<Option<Source>> {
        let mut flat = vec![None; 256];
        for extent in map {
            for block in extent.block..extent.end() {
                flat[usize::try_from(block).unwrap()] = Some(extent.source.skip(block - extent.block));
            }
        }
        flat
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        proptest::collection::vec((0..5u64, 1..6u64, any::<bool>()), 0..20)
    }

    proptest! {
        #[test]
        fn the_upper_map_hides_the_lower(lower in ranges(), upper in ranges()) {
            let (lower, upper) = (layer_of(0, &lower), layer_of(1, &upper));
            let both = overlay(&lower, &upper);
            let expected: Vec<_> = flat(&upper).iter().zip(flat(&lower)).map(|(over, below)| over.or(below)).collect();
            prop_assert_eq!(flat(&both), expected);
            prop_assert!(both.is_sorted_by(|a, b| a.end() <= b.block));
            let coalesced = both.windows(2).all(|pair| pair[0].end() < pair[1].block || pair[0].source.skip(pair[0].count) != pair[1].source);
            prop_assert!(coalesced);
        }
    }
}
