//! How large a capsule is.

use serde::{Deserialize, Serialize};

use crate::limits;

/// vCPUs, memory and disk of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Capacity of the root disk in MiB.
    pub disk_mb: u32,
}

/// What a template asks of the capsules made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateShape {
    /// Least capacity of a disk that holds it, in MiB.
    pub disk_mb: u32,
    /// The vCPUs and the memory in MiB that every capsule made from it has, because its memory is part of it.
    pub fixed: Option<(u32, u32)>,
}

/// A size outside what a deployment allows. Each message names the field as the API spells it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be between {min} and {max}, not {found}")]
pub struct ShapeError {
    /// The field, as the API spells it.
    pub field: &'static str,
    /// Smallest allowed value.
    pub min: u32,
    /// Largest allowed value.
    pub max: u32,
    /// What was asked for.
    pub found: i64,
}

/// Largest sizes that a deployment allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapeLimits {
    /// Most virtual CPUs of one capsule.
    pub vcpus: u32,
    /// Most memory of one capsule in MiB.
    pub memory_mb: u32,
    /// Largest root disk in MiB.
    pub disk_mb: u32,
}

impl Default for ShapeLimits {
    fn default() -> Self {
        Self { vcpus: limits::MAX_VCPUS, memory_mb: limits::MAX_MEMORY_MB, disk_mb: limits::MAX_DISK_MB }
    }
}

impl Shape {
    /// The shape of a request: a missing, zero or negative size takes the default, and what is left must lie within
    /// `max` and be at least what the template needs. What the template fixes is taken from it, whatever was asked for.
    ///
    /// # Errors
    /// [`ShapeError`] for the first field that is out of range.
    pub fn from_request(
        vcpus: Option<i64>,
        memory_mb: Option<i64>,
        disk_mb: Option<i64>,
        template: TemplateShape,
        max: ShapeLimits,
    ) -> Result<Self, ShapeError> {
        let pick = |field, asked: Option<i64>, default: u32, min: u32, max: u32| {
            let found = asked.filter(|&n| n > 0).unwrap_or_else(|| i64::from(default));
            u32::try_from(found).ok().filter(|n| (min..=max).contains(n)).ok_or(ShapeError {
                field,
                min,
                max,
                found,
            })
        };
        let default_disk = limits::DEFAULT_DISK_MB.max(template.disk_mb);
        let (vcpus, memory_mb) = match template.fixed {
            Some(fixed) => fixed,
            None => (
                pick("vcpus", vcpus, limits::DEFAULT_VCPUS, 1, max.vcpus)?,
                pick(
                    "memory_mb",
                    memory_mb,
                    limits::DEFAULT_MEMORY_MB,
                    limits::MIN_MEMORY_MB,
                    max.memory_mb,
                )?,
            ),
        };
        let disk_mb = pick("disk_size_mb", disk_mb, default_disk, template.disk_mb, max.disk_mb)?;
        Ok(Self { vcpus, memory_mb, disk_mb })
    }
}

/// The inactivity time-out that a request of `asked` seconds gets: none at or below zero, else at least a minute.
pub fn effective_timeout_sec(asked: i64) -> u32 {
    match asked {
        ..=0 => 0,
        1..=59 => limits::MIN_TIMEOUT_SEC,
        more => u32::try_from(more).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: TemplateShape = TemplateShape { disk_mb: 1024, fixed: None };

    fn shape(vcpus: i64, memory: i64, disk: i64) -> Result<Shape, ShapeError> {
        Shape::from_request(Some(vcpus), Some(memory), Some(disk), BASE, ShapeLimits::default())
    }

    #[test]
    fn missing_and_non_positive_sizes_take_the_defaults() {
        let default = Shape { vcpus: 1, memory_mb: 512, disk_mb: 5120 };
        assert_eq!(Shape::from_request(None, None, None, BASE, ShapeLimits::default()), Ok(default));
        assert_eq!(shape(0, -1, i64::MIN), Ok(default));
    }

    #[test]
    fn absurd_sizes_name_their_field() {
        assert_eq!(shape(i64::MAX, 512, 5120).unwrap_err().field, "vcpus");
        assert_eq!(shape(1, 1, 5120).unwrap_err().field, "memory_mb");
        assert_eq!(shape(1, 512, 1).unwrap_err().field, "disk_size_mb");
        assert_eq!(shape(1, 512, i64::from(u32::MAX) + 1025).unwrap_err().field, "disk_size_mb");
    }

    #[test]
    fn a_template_larger_than_the_default_sets_the_default() {
        let large = TemplateShape { disk_mb: 9000, fixed: None };
        let made = Shape::from_request(None, None, None, large, ShapeLimits::default()).unwrap();
        assert_eq!(made.disk_mb, 9000);
    }

    #[test]
    fn what_a_template_fixes_is_not_asked_for() {
        let snapshot = TemplateShape { disk_mb: 6000, fixed: Some((3, 700)) };
        let made = Shape::from_request(Some(99), Some(1), Some(7000), snapshot, ShapeLimits::default());
        assert_eq!(made, Ok(Shape { vcpus: 3, memory_mb: 700, disk_mb: 7000 }));
        let small = Shape::from_request(None, None, Some(5999), snapshot, ShapeLimits::default());
        assert_eq!(small.unwrap_err().field, "disk_size_mb");
    }

    #[test]
    fn short_timeouts_are_raised_and_long_ones_kept() {
        let cases = [(-5, 0), (0, 0), (1, 60), (59, 60), (60, 60), (61, 61), (i64::MAX, u32::MAX)];
        for (asked, effective) in cases {
            assert_eq!(effective_timeout_sec(asked), effective, "{asked}");
        }
    }
}
