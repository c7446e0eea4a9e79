//! The structure of the sources, and the packages that they add to a user's lock file.

mod floors;
mod lock_file;
