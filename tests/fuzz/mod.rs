//! Sequences of operations against a model of a few lines.

mod apply;
mod corpus;
mod expect;
pub(crate) mod model;
pub(crate) mod op;
pub(crate) mod random;
mod real;
pub(crate) mod run;
pub(crate) mod text;
pub(crate) mod touch;
mod watch;

pub(crate) use corpus::CORPUS;
