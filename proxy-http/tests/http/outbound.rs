//! From an application into the mesh.

use crate::inbound::sidecar;
use crate::port::Port;
use crate::world::{Client, Copy, Does, PATIENCE, World, raw};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_request_arrives_as_the_next_hop_may_see_it() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let request = http::Request::post("http://hello.shop.global/path?query")
        .header("host", "hello.shop.global")
        .header("x-forwarded-client-cert", "By=spiffe://forged;URI=spiffe://forged")
        .header("x-isthmus-source", "forged;forged")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-request-id", "mine")
        .body(Full::new(Bytes::from("hello")))
        .unwrap();
    let got = world.client().await.request(request).await;
    assert_eq!((got.status, got.body.as_deref()), (200, Some("a 5")));
    let head = copy.last_head();
    assert!(head.starts_with("post /path?query http/1.1\r\n"), "{head}");
    for line in [
        "host: hello.shop.global",
        "x-request-id: mine",
        "x-forwarded-proto: http",
        "x-isthmus-source: east;client",
        "content-length: 5",
    ] {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
    assert!(!head.contains("forged") && !head.contains("x-private"), "{head}");
    let text = world.metrics.encode();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total")).unwrap();
    for label in [
        "reporter=\"source\"",
        "source_cluster=\"east\"",
        "destination_cluster=\"west\"",
        "destination_service=\"hello.shop.global\"",
        "destination_principal=\"spiffe://test.mesh/ns/shop/sa/hello\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let mut client = world.client().await;
    for _ in 0..50 {
        assert_eq!(client.get().await.status, 200);
    }
    // Another application connection uses the same one, one after the other.
    assert_eq!(world.client().await.get().await.status, 200);
    assert!(copy.connections.load(Ordering::SeqCst) <= 2, "{:?}", copy.connections);
    assert_eq!(copy.seen(), 51);
}

#[tokio::test]
async fn a_silent_copy_is_hedged_for_what_changes_nothing() {
    let (hung, good) =
        (Copy::start("hung", Does::Hang).await, Copy::start("good", Does::Answer).await);
    for method in ["GET", "HEAD", "OPTIONS"] {
        // An answer in time is one of the second copy: the first has none.
        let both = vec![hung.address, good.address];
        let world = World::with(both, |route| route.timeout_ms = 10_000).await;
        let begun = Instant::now();
        let got = world.client().await.send(method, "").await;
        let took = begun.elapsed();
        assert_eq!(got.status, 200, "{method}");
        assert!(took >= Duration::from_millis(290), "{method} {took:?}");
    }
    assert_eq!((hung.seen(), good.seen()), (3, 3));

    // A POST is sent once, and waited for.
    let world = World::with(vec![hung.address, good.address], |r| r.timeout_ms = 1_500).await;
    let got = world.client().await.send("POST", "body").await;
    assert_eq!(got.status, 504);
    assert!(got.body.unwrap().contains("1500 ms"));
    // So is what may be repeated once the first has failed, but not beside it.
    for (method, body) in
        [("PUT", vec![b'x'; 65_537]), ("PUT", b"body".to_vec()), ("DELETE", vec![])]
    {
        let world = World::with(vec![hung.address, good.address], |r| r.timeout_ms = 1_500).await;
        let got = world.client().await.send(method, body).await;
        assert_eq!(got.status, 504, "{method}");
    }
    assert_eq!((hung.seen(), good.seen()), (7, 3), "none was sent again");
    assert!(world.metrics.encode().contains("response_flags=\"UT\""));
}

#[tokio::test]
async fn what_came_whole_is_repeated_though_nobody_knew_its_length() {
    let (gone, good) =
        (Copy::start("gone", Does::Close).await, Copy::start("good", Does::Answer).await);
    let world = World::new(&[&gone, &good]).await;
    let head = "HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    let answer = raw(world.address, &format!("PUT / {head}{body}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!((gone.seen(), good.seen()), (1, 1));
    let (_, arrived) = good.requests.lock().unwrap()[0].clone();
    let arrived = String::from_utf8(arrived).unwrap();
    assert!(arrived.contains("abc") && arrived.contains("defg"), "{arrived}");
}

#[tokio::test]
async fn a_late_answer_wins_when_it_is_first() {
    // The second path hangs: the first, slow but alive, is still listened to.
    let told = Arc::new(tokio::sync::Notify::new());
    let slow = Copy::start("slow", Does::AnswerWhen(told.clone())).await;
    let hung = Copy::start("hung", Does::Hang).await;
    let world = World::new(&[&slow, &hung]).await;
    let mut client = world.client().await;
    let got = tokio::spawn(async move { client.get().await });
    while hung.seen() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    told.notify_one();
    let got = got.await.unwrap();
    assert_eq!((got.body.as_deref(), slow.seen(), hung.seen()), (Some("slow 0"), 1, 1));
}

#[tokio::test]
async fn a_reset_before_the_response_is_tried_elsewhere_unless_it_might_act_twice() {
    let (bad, good) =
        (Copy::start("bad", Does::Close).await, Copy::start("good", Does::Answer).await);
    for (method, body, answer) in [("GET", "", "good 0"), ("PUT", "abc", "good 3")] {
        // A world each: after one reset the engine asks the other first.
        let world = World::new(&[&bad, &good]).await;
        let got = world.client().await.send(method, body).await;
        assert_eq!(got.body.as_deref(), Some(answer), "{method}");
    }
    assert_eq!((bad.seen(), good.seen()), (2, 2));

    let world = World::new(&[&bad, &good]).await;
    let got = world.client().await.send("POST", "abc").await;
    assert_eq!(got.status, 503);
    assert!(got.body.unwrap().contains("ended the connection before a response"));
    assert_eq!((bad.seen(), good.seen()), (3, 2), "the POST went out once");
    assert!(world.metrics.encode().contains("response_flags=\"UC\""));
}

#[tokio::test]
async fn what_cannot_be_connected_is_passed_over_for_any_method() {
    let good = Copy::start("good", Does::Answer).await;
    let nobody = Port::held();
    let world = World::with(vec![nobody.address, good.address], |_| {}).await;
    for method in ["GET", "POST", "PATCH"] {
        let got = world.client().await.send(method, "abc").await;
        assert_eq!(got.body.as_deref(), Some("good 3"), "{method}");
    }
    // A stream too.
    let got = world.client().await.send("POST", vec![b'x'; 300_000]).await;
    assert_eq!(got.body.as_deref(), Some("good 300000"));

    let world = World::with(vec![nobody.address], |_| {}).await;
    let got = world.client().await.get().await;
    assert_eq!(got.status, 503);
    assert!(world.metrics.encode().contains("response_flags=\"UF\""));
    let world = World::with(vec![], |_| {}).await;
    let got = world.client().await.get().await;
    assert_eq!(got.status, 503);
    assert!(world.metrics.encode().contains("response_flags=\"UH\""), "{}", world.metrics.encode());
}

#[tokio::test]
async fn an_impostor_is_not_spoken_to() {
    let (copy, _) = (Copy::start("a", Does::Answer).await, ());
    let world = World::new(&[&copy]).await;
    let mut client = world.client().await;
    assert_eq!(client.get().await.status, 200);
    // From now on another account is expected: kept connections to the old one are of no use.
    world.publish("somebody-else");
    assert_eq!(client.get().await.status, 503);
    assert_eq!(copy.seen(), 1);
    world.publish("hello");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_cut_and_not_begun_again() {
    let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
    let (bad, good) = (
        Copy::start("bad", Does::RawAndClose(begun)).await,
        Copy::start("good", Does::Answer).await,
    );
    let world = World::new(&[&bad, &good]).await;
    let got = world.client().await.get().await;
    assert_eq!((got.status, got.body), (200, None), "the client learns that it is not whole");
    assert_eq!((bad.seen(), good.seen()), (1, 0));
    assert!(world.metrics.encode().contains("response_flags=\"UC\""));
}

#[tokio::test]
async fn no_attempt_is_made_that_the_budget_does_not_have() {
    let (bad, good) =
        (Copy::start("bad", Does::Close).await, Copy::start("good", Does::Answer).await);
    let with = async |budget: u32| {
        World::with(vec![bad.address, good.address], |route| {
            route.retry.budget_percent = 0;
            route.retry.budget_per_second = budget;
        })
        .await
    };
    assert_eq!(with(1).await.client().await.get().await.status, 200);
    let poor = with(0).await;
    assert_eq!(poor.client().await.get().await.status, 503);
    let text = poor.metrics.encode();
    assert!(text.contains("isthmus_http_attempts_denied_total{reason=\"budget\"} 1"), "{text}");
    let none = World::with(vec![bad.address, good.address], |r| r.retry.attempts = 0).await;
    assert_eq!(none.client().await.get().await.status, 503, "no attempts, no second one");
}

#[tokio::test]
async fn leaving_a_suspected_copy_is_not_bound_by_the_budget() {
    let (hung, good) =
        (Copy::start("hung", Does::Hang).await, Copy::start("good", Does::Answer).await);
    let world = World::with(vec![hung.address, good.address], |route| {
        route.retry.budget_percent = 0;
        route.retry.budget_per_second = 3;
    })
    .await;
    // Many requests are with the copy when it hangs: three take the budget, the rest may leave.
    let mut all = Vec::new();
    for _ in 0..60 {
        let mut client = world.client().await;
        all.push(tokio::spawn(async move { client.get().await.status }));
    }
    let mut served = 0;
    for one in all {
        served += usize::from(one.await.unwrap() == 200);
    }
    assert_eq!(served, 60);
    assert!(hung.seen() > 3, "they were with it: {}", hung.seen());
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    let once = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let copy = Copy::start("a", Does::RawAndClose(once)).await;
    let world = World::with(vec![copy.address], |route| {
        route.retry.budget_percent = 0;
        route.retry.budget_per_second = 0;
    })
    .await;
    let mut client = world.client().await;
    for _ in 0..100 {
        assert_eq!(client.get().await.body.as_deref(), Some("ok"));
    }
}

#[tokio::test]
async fn a_sidecar_that_says_its_application_was_not_reached_is_left() {
    let unsent = "HTTP/1.1 503 Service Unavailable\r\nx-isthmus-unserved: unsent\r\n\
                  content-length: 0\r\n\r\n";
    let (bad, good) =
        (Copy::start("bad", Does::Raw(unsent)).await, Copy::start("good", Does::Answer).await);
    let world = World::new(&[&bad, &good]).await;
    // Not reached means not acted upon: a POST may go elsewhere too.
    assert_eq!(world.client().await.send("POST", "abc").await.body.as_deref(), Some("good 3"));
    // One that broke off may have acted.
    let reset = "HTTP/1.1 503 Service Unavailable\r\nx-isthmus-unserved: reset\r\n\
                 content-length: 0\r\n\r\n";
    let world = World::new(&[&bad, &good]).await;
    bad.now_does(Does::Raw(reset));
    let got = world.client().await.send("POST", "abc").await;
    assert_eq!((got.status, good.seen()), (503, 1));
    assert!(!got.headers.contains_key("x-isthmus-unserved"), "the mark stays between sidecars");
    assert_eq!(world.client().await.get().await.body.as_deref(), Some("good 0"));
    // These are gRPC's words, in which nobody was called.
    let world = World::new(&[&bad, &good]).await;
    bad.now_does(Does::Raw(
        "HTTP/1.1 200 OK\r\nx-isthmus-unserved: unsent\r\ngrpc-status: 14\r\n\
         content-length: 0\r\n\r\n",
    ));
    let got = world.client().await.send("POST", "abcd").await;
    assert_eq!((got.status, got.headers.contains_key("x-isthmus-unserved")), (200, false));
    // An application's own 503 is its answer.
    bad.now_does(Does::Raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"));
    let world = World::new(&[&bad, &good]).await;
    assert_eq!(world.client().await.get().await.body.as_deref(), Some("busy"));
}

#[tokio::test]
async fn long_bodies_pass_both_ways() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let size = 8 * 1024 * 1024;
    let got = world.client().await.send("POST", vec![b'x'; size]).await;
    assert_eq!(got.body, Some(format!("a {size}")));
    let text = world.metrics.encode();
    let sum = text.lines().find(|line| line.starts_with("istio_request_bytes_sum")).unwrap();
    assert!(sum.ends_with(&format!(" {size}.0")), "{sum}");
}

#[tokio::test]
async fn a_slow_body_comes_as_it_is_sent() {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let copy = Copy::start("a", Does::Chunks(Arc::new(Mutex::new(receiver)))).await;
    let world = World::new(&[&copy]).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/").header("host", "hello.shop.global");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let mut response = client.send_request(request).await.unwrap();
    for text in ["one", "two", "three"] {
        sender.send(text).await.unwrap();
        let frame = tokio::time::timeout(PATIENCE, response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), text);
    }
    drop(sender);
    assert!(response.frame().await.is_none());
}

#[tokio::test]
async fn a_server_that_asks_for_another_protocol_says_which() {
    let asks = "HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                content-length: 0\r\n\r\n";
    let copy = Copy::start("a", Does::Raw(asks)).await;
    let plain = Copy::start_plain("a", Does::Raw(asks)).await;
    let (world, (inbound, _)) = (World::new(&[&copy]).await, sidecar(plain.address, true).await);
    for address in [world.address, inbound] {
        let got = Client::connect(address).await.get().await;
        assert_eq!((got.status, &got.headers["upgrade"]), (426, &"websocket".parse().unwrap()));
        assert_eq!(got.headers["connection"], "upgrade");
    }
}

#[tokio::test]
async fn a_websocket_passes() {
    let copy = Copy::start("a", Does::Echo).await;
    let world = World::new(&[&copy]).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = "GET /chat HTTP/1.1\r\nhost: hello.shop.global\r\nconnection: Upgrade\r\n\
                upgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
    }
    assert!(read.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&read));
    for _ in 0..3 {
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
    }
    // It is no request any more, and has its place among connections all the same.
    assert_eq!(Arc::strong_count(&world.held), 2);
    let told = || world.metrics.encode().contains("response_code=\"101\"");
    assert!(!told(), "it has not ended");
    drop(stream);
    let given_back = async {
        while Arc::strong_count(&world.held) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("it ended with its client");
    assert!(told());
    for name in ["istio_request_bytes_sum", "istio_response_bytes_sum"] {
        let text = world.metrics.encode();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(" 12.0"), "{line}");
    }
}

#[tokio::test]
async fn what_is_no_proper_request_goes_nowhere() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let many: String = (0..101).map(|n| format!("h{n}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(70_000));
    for (request, code) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(), "400"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{long}\r\n"), "431"),
        ("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n".to_owned(), "400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
                .to_owned(),
            "400",
        ),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc".to_owned(), "400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"
                .to_owned(),
            "400",
        ),
        ("\u{16}\u{3}\u{1}garbage\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = raw(world.address, &request).await;
        let shown: String = request.chars().take(60).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{shown:?}: {answer}");
    }
    // Both lengths at once: the chunks count, and no second request hides behind them.
    let both = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\
                connection: close\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    let _ = raw(world.address, both).await;
    let heads: Vec<String> = copy.requests.lock().unwrap().iter().map(|r| r.0.clone()).collect();
    assert!(heads.iter().all(|head| !head.contains("hidden")), "{heads:?}");
    assert!(
        heads.iter().all(|h| !(h.contains("content-length") && h.contains("transfer-encoding"))),
        "{heads:?}"
    );
}

#[tokio::test]
async fn draining_ends_kept_connections_after_the_request_at_hand() {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let copy = Copy::start("a", Does::Chunks(Arc::new(Mutex::new(receiver)))).await;
    let world = World::new(&[&copy]).await;
    let mut busy = world.client().await;
    let got = tokio::spawn(async move { busy.get().await });
    while copy.seen() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let drain = world.drain.clone();
    let draining = tokio::spawn(async move { drain.drain(PATIENCE).await });
    sender.send("late").await.unwrap();
    drop(sender);
    assert_eq!(got.await.unwrap().body.as_deref(), Some("late"));
    assert_eq!(draining.await.unwrap(), 0, "nothing had to be cut");
}
