//! What a tenant gives back.

use std::time::Duration;

use crate::harness::{Server, ask, call, encode, eventually, next, usage};

#[test]
fn a_flushed_tenant_gives_everything_back() {
    let server = Server::start(&["--tenant", "1=48mb", "--total-max", "256mb"]);
    let mut admin = server.client();
    let mut client = server.client_of(1);
    let mut bytes = Vec::new();
    for n in 0..40_000 {
        encode(&[b"SET", format!("key:{n}").as_bytes(), &[b'x'; 1000]], &mut bytes);
    }
    std::thread::scope(|scope| {
        let mut writer = server.client_of(1);
        scope.spawn(move || {
            for chunk in bytes.chunks(1 << 20) {
                writer.write(chunk).expect("sent");
            }
            for _ in 0..40_000 {
                assert_eq!(next(&mut writer), "+OK");
            }
        });
    });
    assert_eq!(ask(&mut client, &["DBSIZE"]), ":40000");
    let loaded = server.resident();
    assert!(loaded > 40 << 20, "{loaded}");
    assert_eq!(ask(&mut client, &["FLUSHDB"]), "+OK");
    assert_eq!(ask(&mut client, &["SELECT", "2"]), "+OK");
    eventually("the tenant's usage is 0", || {
        call(&mut admin, &["MEMORY", "PURGE"]);
        usage(&mut admin, 1) == 0
    });
    eventually("the memory is given back", || server.resident() < loaded - (30 << 20));
}

#[test]
fn memory_is_flat_over_many_rounds() {
    let server = Server::start(&["--tenant", "1=8mb"]);
    let mut admin = server.client();
    let mut after = Vec::new();
    for _ in 0..6 {
        let mut client = server.client_of(1);
        for n in 0..2000 {
            client.send(&[b"SET", format!("k{n}").as_bytes(), &[b'x'; 3000]]).expect("sent");
        }
        for _ in 0..2000 {
            assert_eq!(next(&mut client), "+OK");
        }
        assert_eq!(ask(&mut client, &["FLUSHDB"]), "+OK");
        drop(client);
        eventually("nothing is left", || {
            call(&mut admin, &["MEMORY", "PURGE"]);
            usage(&mut admin, 1) == 0
        });
        std::thread::sleep(Duration::from_millis(50));
        after.push(server.resident());
    }
    assert!(after[5] < after[1] + (8 << 20), "{after:?}");
}
