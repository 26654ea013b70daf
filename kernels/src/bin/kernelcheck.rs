//! x
fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    for (name, test) in retouch_kernels::tests::ALL {
        if !name.contains(&only) { continue; }
        let start = std::time::Instant::now();
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("{name}: {} {:.1}s", if ok { "ok" } else { "FAILED" }, start.elapsed().as_secs_f32());
    }
}
