//! Small frames of a body made into large ones.
//!
//! TLS hands over records of 16 KiB. Each would be a chunk of its own on the way to the guest, which reads and parses it
//! with system calls that are dear under software emulation.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Bytes that are enough for one frame.
const ENOUGH: usize = 256 * 1024;

/// A body whose frames are as large as what has arrived allows. Nothing waits for more.
pub(crate) struct Gathered {
    body: Body,
    /// What came after the data that was gathered: trailers or an error.
    next: Option<Result<Frame<Bytes>, axum::Error>>,
}

impl Gathered {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, next: None }
    }

    /// Adds what has arrived to `first`.
    fn gather(&mut self, cx: &mut Context<'_>, first: Bytes) -> Bytes {
        let mut all = Piece::One(first);
        while all.len() < ENOUGH {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => all.append(data),
                    Err(trailers) => {
                        self.next = Some(Ok(trailers));
                        break;
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    self.next = Some(Err(error));
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        all.into_bytes()
    }
}

/// Bytes that are copied only where there is something to add to them.
enum Piece {
    One(Bytes),
    Many(BytesMut),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn append(&mut self, more: Bytes) {
        match self {
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(ENOUGH.max(first.len() + more.len()));
                all.extend_from_slice(first);
                all.extend_from_slice(&more);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(&more),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

impl HttpBody for Gathered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(next));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Poll::Pending };
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(data) => Frame::data(self.gather(cx, data)),
                Err(trailers) => trailers,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::BodyExt;

    fn gathered(pieces: Vec<Result<Bytes, std::io::Error>>) -> Gathered {
        Gathered::new(Body::from_stream(stream::iter(pieces)))
    }

    async fn sizes(mut body: Gathered) -> Vec<Option<usize>> {
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            sizes.push(frame.ok().map(|frame| frame.into_data().map_or(0, |data| data.len())));
        }
        sizes
    }

    #[tokio::test]
    async fn what_has_arrived_comes_at_once_and_in_order() {
        let pieces = (0..40_u8).map(|i| Ok(Bytes::from(vec![i; 16 * 1024]))).collect();
        assert_eq!(sizes(gathered(pieces)).await, [Some(ENOUGH), Some(ENOUGH), Some(8 * 16 * 1024)]);
        let pieces = vec![Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        assert_eq!(gathered(pieces).collect().await.unwrap().to_bytes(), "abc");
    }

    #[tokio::test]
    async fn an_error_comes_after_what_was_before_it() {
        let pieces = vec![Ok(Bytes::from_static(b"ab")), Err(std::io::Error::other("broken"))];
        assert_eq!(sizes(gathered(pieces)).await, [Some(2), None]);
    }
}
