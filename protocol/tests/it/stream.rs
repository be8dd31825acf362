//! Frames over a byte stream that cuts them anywhere.

use protocol::codec::Limits;
use protocol::message::{FromClient, ToCoordinator};
use protocol::transport::stream::{FrameReader, FrameWriter, StreamError};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, duplex};

#[tokio::test]
async fn messages_arrive_in_order_and_the_end_is_clean() {
    let (near, far) = duplex(7); // every frame is cut
    let sender = tokio::spawn(async move {
        let mut writer = FrameWriter::new(near, Limits::CONTROL);
        for resident_bytes in 0..50 {
            let payload = vec![3; usize::try_from(resident_bytes).expect("small") * 100];
            let message = ToCoordinator::Alive { resident_bytes, pulse: None };
            writer.send(&message, &payload).await.expect("sent");
        }
        writer.close().await.expect("closed");
    });
    let mut reader = FrameReader::new(far, Limits::CONTROL);
    for resident_bytes in 0..50 {
        let (message, payload) =
            reader.next::<ToCoordinator>().await.expect("read").expect("a frame");
        assert_eq!(message, ToCoordinator::Alive { resident_bytes, pulse: None });
        assert_eq!(payload.len(), usize::try_from(resident_bytes).expect("small") * 100);
    }
    assert!(reader.next::<ToCoordinator>().await.expect("clean end").is_none());
    sender.await.expect("sender");
}

#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let (mut near, far) = duplex(64);
    let frame =
        protocol::codec::encode(&FromClient::Status, b"abc", &Limits::CONTROL).expect("encodes");
    let mut reader = FrameReader::new(far, Limits::CONTROL);
    for byte in &frame[..frame.len() - 1] {
        near.write_all(&[*byte]).await.expect("written");
        let wait = Duration::from_millis(1);
        let early = tokio::time::timeout(wait, reader.next::<FromClient>()).await;
        assert!(early.is_err(), "{early:?}");
    }
    near.write_all(b"c").await.expect("written");
    let (message, payload) = reader.next().await.expect("read").expect("a frame");
    assert_eq!((message, &payload[..]), (FromClient::Status, &b"abc"[..]));
}

#[tokio::test]
async fn an_end_inside_a_frame_is_an_error() {
    let (mut near, far) = duplex(64);
    near.write_all(&[1, 0, 0]).await.expect("written");
    drop(near);
    let ended = FrameReader::new(far, Limits::CONTROL).next::<FromClient>().await;
    assert!(matches!(ended, Err(StreamError::Truncated { bytes: 3 })), "{ended:?}");
}

#[tokio::test]
async fn garbage_is_an_error() {
    let (mut near, far) = duplex(64);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    let ended = FrameReader::new(far, Limits::CONTROL).next::<FromClient>().await;
    assert!(matches!(ended, Err(StreamError::Frame(_))), "{ended:?}");
}
