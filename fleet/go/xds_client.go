// A grpc-go client that is its own proxy: calls gRPC's interop service at a target, so often a second,
// with the transport that xDS says, and writes a line for each call: who answered, or what went wrong.
//
// gRPC's own client of that kind (interop/xds/client) is a module without releases and cannot be
// installed; this does the same with the same library.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
	_ "google.golang.org/grpc/xds"
)

func main() {
	target := flag.String("target", "", "xds:///HOST:PORT")
	rate := flag.Int("rate", 10, "calls a second")
	limit := flag.Duration("limit", 5*time.Second, "longest call")
	flag.Parse()
	// Plaintext where the control plane names no transport.
	creds, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		log.Fatal(err)
	}
	channel, err := grpc.NewClient(*target, grpc.WithTransportCredentials(creds))
	if err != nil {
		log.Fatal(err)
	}
	client := testgrpc.NewTestServiceClient(channel)
	for range time.Tick(time.Second / time.Duration(*rate)) {
		go call(client, *limit)
	}
}

func call(client testgrpc.TestServiceClient, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var from peer.Peer
	_, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{}, grpc.Peer(&from))
	if err != nil {
		fmt.Printf("call failed: %v\n", err)
		return
	}
	transport := "none"
	if from.AuthInfo != nil {
		transport = from.AuthInfo.AuthType()
	}
	fmt.Printf("call answered: %v over %s\n", from.Addr, transport)
}
