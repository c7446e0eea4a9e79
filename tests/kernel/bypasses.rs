//! G7, ways around: other processes, foreign code in this one, and what the application does to a mapping's range. What can't
//! be prevented is pinned down too, so that SECURITY.md stays true.

mod calls;
mod descriptors;
mod fork;
mod huge_pages;
mod kept_pages;
mod kinds_of_children;
mod locked;
mod other_process;
mod remap;

use crate::support::addr;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
