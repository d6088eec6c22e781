%% The reference: a room as an Erlang process that casts each message to its subscribers' processes.
%%
%% erl -noshell -s erlang_room main SUBSCRIBERS OUTSTANDING SECONDS
%% keeps OUTSTANDING messages under way for SECONDS and prints one line of JSON: deliveries, seconds.
-module(erlang_room).
-behaviour(gen_server).
-export([main/1, init/1, handle_cast/2, handle_call/3]).

main(Arguments) ->
    [Subscribers, Outstanding, Seconds] = [list_to_integer(atom_to_list(Each)) || Each <- Arguments],
    Publisher = self(),
    Silent = [start({subscriber, none}) || _ <- lists:seq(2, Subscribers)],
    %% The last subscriber tells the publisher of each message: by then all have been sent theirs.
    All = Silent ++ [start({subscriber, Publisher})],
    Room = start({room, All}),
    run(Room, Outstanding, until(500), 0, 0),
    Before = deliveries(All),
    Began = erlang:monotonic_time(microsecond),
    run(Room, Outstanding, until(Seconds * 1000), 0, 0),
    Delivered = deliveries(All) - Before,
    Took = (erlang:monotonic_time(microsecond) - Began) / 1.0e6,
    io:format("{\"deliveries\": ~p, \"seconds\": ~p}~n", [Delivered, Took]),
    halt().

start(Role) ->
    {ok, Process} = gen_server:start(?MODULE, Role, []),
    Process.

until(Milliseconds) ->
    erlang:monotonic_time(millisecond) + Milliseconds.

deliveries(Subscribers) ->
    lists:sum([gen_server:call(Each, count, infinity) || Each <- Subscribers]).

%% Publish while there is time and fewer than Outstanding are under way; then wait for those.
run(Room, Outstanding, End, UnderWay, Number) ->
    InTime = erlang:monotonic_time(millisecond) < End,
    if
        InTime, UnderWay < Outstanding ->
            gen_server:cast(Room, {publish, message(Number)}),
            run(Room, Outstanding, End, UnderWay + 1, Number + 1);
        UnderWay > 0 ->
            receive delivered -> run(Room, Outstanding, End, UnderWay - 1, Number) end;
        true ->
            ok
    end.

message(Number) ->
    #{id => Number, room_id => <<"lobby">>, user_id => <<"user-0001">>,
      inserted_at => 1234567890, content => <<"hello there everyone, this is a chat line">>}.

init({room, Subscribers}) -> {ok, {room, Subscribers}};
init({subscriber, Publisher}) -> {ok, {subscriber, Publisher, 0}}.

handle_cast({publish, Message}, {room, Subscribers} = State) ->
    lists:foreach(fun(Each) -> gen_server:cast(Each, {chat_message, Message}) end, Subscribers),
    {noreply, State};
handle_cast({chat_message, _Message}, {subscriber, none, Count}) ->
    {noreply, {subscriber, none, Count + 1}};
handle_cast({chat_message, _Message}, {subscriber, Publisher, Count}) ->
    Publisher ! delivered,
    {noreply, {subscriber, Publisher, Count + 1}}.

handle_call(count, _From, {subscriber, _Publisher, Count} = State) ->
    {reply, Count, State}.
