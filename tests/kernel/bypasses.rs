//! G7, ways around a mapping: other processes, foreign code in this process, and the application's own changes of a
//! range. What can't be prevented is tested too, so that SECURITY.md stays true.

mod calls;
mod descriptors;
mod fork;
mod huge_pages;
mod kept_pages;
mod kinds_of_children;
mod locked;
mod other_process;
mod remap;

use crate::support::matrix::Case;
use crate::support::{addr, raw};
use revocable_mmio::{Mapping, Region};

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// A region of two pages whose first word is [`SECRET`], a mapping whose pages are mapped, and the address of the
/// mapping.
fn with_secret(case: &Case) -> (Region, Mapping, usize) {
    let region = case.region(2);
    let mapping = case.map(&region);
    let base = addr(&mapping);
    mapping.write(0, SECRET).expect("enabled");
    for at in [base, base + case.page()] {
        raw::load64(at).expect("enabled");
    }
    (region, mapping, base)
}
