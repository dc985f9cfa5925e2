//! Images as their users see them: real files, written, read, damaged, shared.

#[cfg(test)]
mod common;
#[cfg(test)]
mod model;
