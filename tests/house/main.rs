//! The structure of the sources, and the packages that they add to a user's lock file.

mod floors;
mod guide;
mod lock_file;
