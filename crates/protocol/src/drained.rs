//! A request's body that is read to its end although nobody wants it any more.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};

/// How long the rest of a request is read after an early answer.
const DRAIN: Duration = Duration::from_secs(5);

/// A body whose rest is read and dropped for up to 5 s when it is let go of early, because a connection that is closed
/// with bytes unread is reset, and the answer lost with it. Needs a runtime where it is dropped.
#[derive(Debug)]
pub struct Drained<B: Body + Unpin + Send + 'static>(Option<B>);

impl<B: Body + Unpin + Send + 'static> Drained<B> {
    /// Guards `body`.
    pub fn new(body: B) -> Self {
        Self(Some(body))
    }
}

impl<B: Body + Unpin + Send + 'static> Body for Drained<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body + Unpin + Send + 'static> Drop for Drained<B> {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        let rest = std::future::poll_fn(move |cx| {
            loop {
                match Pin::new(&mut body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(_dropped))) => {}
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        tokio::spawn(tokio::time::timeout(DRAIN, rest));
    }
}
