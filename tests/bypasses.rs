//! G7, ways around: other processes, foreign code in this one, and what the application does to a mapping's range. What can't
//! be prevented is pinned down too, so that SECURITY.md stays true.

#[path = "bypasses/calls.rs"]
mod calls;
#[path = "bypasses/descriptors.rs"]
mod descriptors;
#[path = "bypasses/fork.rs"]
mod fork;
#[path = "bypasses/huge_pages.rs"]
mod huge_pages;
#[path = "bypasses/kept_pages.rs"]
mod kept_pages;
#[path = "bypasses/kinds_of_children.rs"]
mod kinds_of_children;
#[path = "bypasses/locked.rs"]
mod locked;
#[path = "bypasses/other_process.rs"]
mod other_process;
#[path = "bypasses/remap.rs"]
mod remap;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use revocable_mmio::Mapping;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

fn addr(mapping: &Mapping) -> usize {
    mapping.as_ptr().expose_provenance()
}
