//! How the sources hang together, and what a user of them gets beside.

mod floors;
mod lock_file;
