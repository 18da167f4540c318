//! Removes keys whose time has come and that nobody asks for.
//!
//! Each tenant that has such keys is walked in steps, a few per tick and tenant and with a bound on each tick, so that a
//! tenant with many keys costs the others little. A key that somebody does ask for is removed there and then.

use std::time::{Duration, Instant};

use crate::server::Server;

/// How often.
const TICK: Duration = Duration::from_millis(100);

/// For how long at a time, over all tenants.
const BUDGET: Duration = Duration::from_millis(5);

/// Steps of the walk per tenant and tick.
const STEPS: usize = 64;

/// Sweeps for ever.
pub(crate) async fn sweep(server: &'static Server) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next = 0;
    loop {
        ticks.tick().await;
        next = sweep_some(server, next);
    }
}

/// One tick, which begins with the tenant after the one at which the last tick ran out of time.
fn sweep_some(server: &Server, first: u32) -> u32 {
    let end = Instant::now() + BUDGET;
    let from_first = server.tenants.iter().filter(|tenant| tenant.index() >= first);
    let before_first = server.tenants.iter().filter(|tenant| tenant.index() < first);
    for tenant in from_first.chain(before_first) {
        for _ in 0..STEPS {
            if !tenant.sweep() {
                break;
            }
            if Instant::now() >= end {
                return tenant.index() + 1;
            }
        }
    }
    0
}
