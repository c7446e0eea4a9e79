//! Random sequences of everything that can be done with regions and mappings, against a model that says what each has to
//! answer. `REVOCABLE_FUZZ_SECONDS=600 cargo test --test fuzz_regions` goes on for so long.

mod fuzz;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use fuzz::op::Memory;
use fuzz::{CORPUS, random, run, text};

const REGRESSIONS: &str = "tests/fuzz/regressions/fuzz_regions.txt";
const PAGES_OF_4K: &[Memory] = &[Memory::Memfd, Memory::Memfd, Memory::ShmFile, Memory::Device];

#[test]
fn regions_do_what_their_model_does() {
    support::start();
    let histories = random::history(PAGES_OF_4K, 100);
    let show = |history: &Vec<_>| text::print(history);
    support::fuzz::check("regions", 160, REGRESSIONS, &histories, show, |history| run::run(&history));
}
