//! Images as their users see them: real files, written, read, damaged, shared.

#[cfg(test)]
mod common;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod links;
#[cfg(test)]
mod model;
#[cfg(test)]
mod sparse;
