//! Sequences of operations, against a small model.

mod apply;
mod corpus;
mod expect;
pub(crate) mod forked;
pub(crate) mod model;
pub(crate) mod op;
pub(crate) mod random;
mod real;
mod rough;
pub(crate) mod run;
pub(crate) mod text;
pub(crate) mod touch;
mod watch;

pub(crate) use corpus::CORPUS;
